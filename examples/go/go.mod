module mayfly.invalid/examples

go 1.25.3

require (
	github.com/spiffe/go-spiffe/v2 v2.8.1
	google.golang.org/grpc v1.79.3
	google.golang.org/protobuf v1.36.11
)
