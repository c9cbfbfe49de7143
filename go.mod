module github.com/pinward/pinward

go 1.26.8
