// Orchestrator is a broker in Go: go-spiffe with the proto of its exp/ against Mayfly's Broker API. It is
// run by ../../broker/run.
package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"

	"mayfly.invalid/interop/say"
)

const server = "spiffe://example.org/mayfly/broker"

func main() {
	if len(os.Args) != 4 {
		say.Exit(errors.New("PID TASK OTHER"))
	}
	pid, err := strconv.Atoi(os.Args[1])
	other, err2 := strconv.Atoi(os.Args[3])
	if err = errors.Join(err, err2); err == nil {
		err = run(pid, os.Args[2], other)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func expect(truth bool, format string, values ...any) error {
	if truth {
		return nil
	}
	return fmt.Errorf("not as it should be: "+format, values...)
}

func dial(ctx context.Context) (*grpc.ClientConn, *workloadapi.X509Source, error) {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return nil, nil, err
	}
	path := strings.TrimPrefix(os.Getenv("SPIFFE_BROKER_SOCKET"), "unix://")
	config := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(spiffeid.RequireFromString(server)))
	connection, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}))
	return connection, source, err
}

func byPID(pid int) (*broker.WorkloadReference, error) {
	packed, err := anypb.New(&broker.WorkloadPIDReference{Pid: int32(pid)})
	return &broker.WorkloadReference{Reference: packed}, err
}

// Mayfly's own kind of reference, written by hand: go-spiffe has none, as it should.
func byTask(id string) *broker.WorkloadReference {
	value := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), id)
	return &broker.WorkloadReference{Reference: &anypb.Any{
		TypeUrl: "type.googleapis.com/mayfly.v1.TaskReference", Value: value,
	}}
}

func notFound(err error) error {
	failed := status.Convert(err)
	for _, detail := range failed.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			right := failed.Code() == codes.NotFound && info.Reason == "WORKLOAD_NOT_FOUND" && info.Domain == "spiffe.io"
			return expect(right, "%v %v", err, info)
		}
	}
	return fmt.Errorf("no error info: %w", err)
}

func run(pid int, task string, other int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	connection, source, err := dial(ctx)
	if err != nil {
		return err
	}
	defer connection.Close()
	defer source.Close()
	ctx = metadata.AppendToOutgoingContext(ctx, "broker.spiffe.io", "true")
	api := broker.NewAPIClient(connection)
	token := func(reference *broker.WorkloadReference) (string, error) {
		answer, err := api.FetchJWTSVID(ctx, &broker.FetchJWTSVIDRequest{Reference: reference, Audience: []string{"interop"}})
		if err != nil {
			return "", err
		}
		return answer.Svids[0].SpiffeId, nil
	}
	name := "spiffe://example.org/job/task/" + task
	pidReference, err := byPID(pid)
	if err != nil {
		return err
	}
	hows := []string{"pid", "task"}
	references := []*broker.WorkloadReference{pidReference, byTask(task)}
	var streams []grpc.ServerStreamingClient[broker.SubscribeToX509SVIDResponse]
	for i, reference := range references {
		stream, err := api.SubscribeToX509SVID(ctx, &broker.SubscribeToX509SVIDRequest{Reference: reference})
		if err != nil {
			return err
		}
		said, err := stream.Recv()
		if err != nil {
			return err
		}
		// go-spiffe's own reader: chain, leaf, key and their agreement.
		svid, err := x509svid.ParseRaw(said.Svids[0].X509Svid, said.Svids[0].X509SvidKey)
		if err != nil {
			return err
		}
		authorities, err := x509.ParseCertificates(said.Svids[0].Bundle)
		if err != nil {
			return err
		}
		got, err := token(reference)
		if err != nil {
			return err
		}
		if err := expect(svid.ID.String() == name && got == name && len(authorities) > 0, "%s and %s", svid.ID, got); err != nil {
			return err
		}
		say.Event("x509_and_jwt", say.Fields{"by": hows[i], "spiffe_id": name})
		streams = append(streams, stream)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	killed, ends := time.Now(), map[string]float64{}
	for i, stream := range streams {
		_, err := stream.Recv()
		ends[hows[i]] = float64(time.Since(killed).Microseconds()) / 1000
		if err := notFound(err); err != nil {
			return err
		}
	}
	for _, reference := range references {
		_, err := token(reference)
		if err := notFound(err); err != nil {
			return err
		}
	}
	otherReference, err := byPID(other)
	if err != nil {
		return err
	}
	served, err := token(otherReference)
	if err != nil {
		return err
	}
	if err := expect(served != name, "another workload"); err != nil {
		return err
	}
	say.Event("ok", say.Fields{"kill_to_end_ms": ends, "connection": "still serves " + served})
	return nil
}
