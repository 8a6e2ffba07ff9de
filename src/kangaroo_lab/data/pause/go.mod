module kangaroo.io/lab/pause

go 1.21
