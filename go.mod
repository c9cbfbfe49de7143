module github.com/pinward/pinward

go 1.26.8

require (
	github.com/google/go-cmp v0.7.0
	github.com/trustelem/zxcvbn v1.0.1
	github.com/wagslane/go-password-validator v0.3.0
)

require (
	github.com/davecgh/go-spew v1.1.1 // indirect
	github.com/dlclark/regexp2 v1.12.0 // indirect
	github.com/pmezard/go-difflib v1.0.0 // indirect
	github.com/stretchr/testify v1.11.1 // indirect
	github.com/test-go/testify v1.1.4 // indirect
)
