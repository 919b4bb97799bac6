// A worker of a job queue, whose jobs outlive it.
//
//	worker JOB WINDOW_END_MS [--crash]
//
// The job is a task that holds nothing and stands until one of its attempts is completed, they are used
// up, or its window closes. Each attempt is a task below it, held by the worker's process: when that dies,
// the attempt ends, its credentials are refused, and the next worker tells the same wish with the same key
// and goes on.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	mayfly "mayfly.invalid/examples/mayflyv1"
)

func main() {
	if err := work(); err != nil {
		log.Fatal(err)
	}
}

func work() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	jobID := os.Args[1]
	windowEnd, err := strconv.ParseUint(os.Args[2], 10, 64)
	if err != nil {
		return err
	}
	// The socket's kernel says who we are; there is nothing to encrypt on the way.
	conn, err := grpc.NewClient(os.Getenv("MAYFLY_ENDPOINT"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	tasks := mayfly.NewTasksClient(conn)

	// Everything here comes from the queue and nothing from this process, so it is the same wish always.
	attempts := uint32(3)
	job, err := tasks.Begin(ctx, &mayfly.BeginRequest{
		Profile: "batch",
		Holder:  &mayfly.HolderWish{Holder: &mayfly.HolderWish_Job{Job: true}},
		Declaration: &mayfly.Declaration{
			Intent: "job " + jobID,
			Budget: &mayfly.Budget{Attempts: &attempts},
		},
		DeadlineMs:     windowEnd,
		IdempotencyKey: "queue/" + jobID,
	}, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	attempt, err := tasks.Begin(ctx, &mayfly.BeginRequest{
		Profile:        "batch",
		Holder:         &mayfly.HolderWish{Holder: &mayfly.HolderWish_ProcessPid{ProcessPid: int32(os.Getpid())}},
		Parent:         job.Task,
		IdempotencyKey: fmt.Sprintf("%s/%d/%d", jobID, os.Getpid(), time.Now().UnixNano()),
	})
	if err != nil {
		// The stable code stands before the colon: docs/denials.md has what each means.
		code, _, _ := strings.Cut(status.Convert(err).Message(), ":")
		return say(map[string]any{"job": job.Task, "attempt": nil, "refused": code})
	}
	if err := do(ctx, job, attempt); err != nil {
		_, _ = tasks.End(ctx, &mayfly.EndRequest{Task: attempt.Task, Cause: "failed", Reason: err.Error()})
		return err
	}
	_, err = tasks.End(ctx, &mayfly.EndRequest{Task: attempt.Task, Cause: "completed"})
	return err
}

// do is where the job would be done, as a holder of the attempt.
func do(ctx context.Context, job, attempt *mayfly.BeginResponse) error {
	client, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+attempt.Socket))
	if err != nil {
		return err
	}
	defer client.Close()
	svid, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "storage"})
	if err != nil {
		return err
	}
	if err := say(map[string]any{"job": job.Task, "attempt": attempt.Task, "token": svid.Marshal()}); err != nil {
		return err
	}
	if slices.Contains(os.Args, "--crash") {
		return syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	return nil
}

func say(event map[string]any) error {
	return json.NewEncoder(os.Stdout).Encode(event)
}
