module kangaroo.io/probe

go 1.21
