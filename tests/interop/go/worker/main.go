// The worker is a workload on go-spiffe, in the lines of ../../supervisor/README.md.
package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"golang.org/x/sys/unix"
)

const (
	audience = "supervisor"
	call     = 10 * time.Second
)

func main() {
	if err := work(bufio.NewScanner(os.Stdin)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func work(in *bufio.Scanner) error {
	say(map[string]any{"ready": true})
	if !in.Scan() {
		return in.Err()
	}
	var ends int64
	if _, err := fmt.Sscanf(in.Text(), "go %d", &ends); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), call)
	defer cancel()
	client, err := workloadapi.New(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	svid, err := client.FetchX509SVID(ctx)
	if err != nil {
		return err
	}
	tX509 := now()
	token, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
	if err != nil {
		return err
	}
	tJWT := now()
	leaf := base64.StdEncoding.EncodeToString(svid.Certificates[0].Raw)
	say(map[string]any{"t_x509": tX509, "t_jwt": tJWT, "leaf": leaf, "token": token.Marshal()})
	if ends > 0 {
		time.Sleep(time.Duration(ends - now()))
		say(map[string]any{"bye": now()})
		return nil
	}
	for in.Scan() {
		if in.Text() == "again" {
			say(map[string]any{"refused": refused(client)})
		}
	}
	return in.Err()
}

// refused says whether neither credential is given.
func refused(client *workloadapi.Client) bool {
	ctx, cancel := context.WithTimeout(context.Background(), call)
	defer cancel()
	_, x509 := client.FetchX509SVID(ctx)
	_, jwt := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
	return x509 != nil && jwt != nil
}

// now is the monotonic clock, which all processes of a machine share.
func now() int64 {
	var at unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &at); err != nil {
		panic(err) // Every Linux has this clock.
	}
	return at.Nano()
}

func say(line map[string]any) {
	out, err := json.Marshal(line)
	if err != nil {
		panic(err) // Only strings and numbers are ever put in.
	}
	fmt.Println(string(out))
}
