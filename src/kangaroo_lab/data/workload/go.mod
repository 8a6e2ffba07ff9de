module kangaroo.io/workload

go 1.21
