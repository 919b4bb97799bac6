// Verifier is a relying party for benches/verifiers, in the line protocol of ../../README.md.
//
//	verifier tls plain|crl KEYS     a TLS server; with crl it looks each client up in KEYS/crl.pem
//	verifier jwt offline|online     judges tokens from standard input with go-spiffe
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

const audience = "verifiers"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	fmt.Println("VERSION", runtime.Version())
	switch {
	case len(args) == 3 && args[0] == "tls":
		return serve(args[2], args[1] == "crl")
	case len(args) == 2 && args[0] == "jwt":
		return judge(args[1] == "online")
	default:
		return errors.New("usage: verifier tls plain|crl KEYS, verifier jwt offline|online")
	}
}

// load reads one moment of the files: the link is resolved once.
func load(keys string, check bool) (*tls.Config, error) {
	version, err := filepath.EvalSymlinks(filepath.Join(keys, "..data"))
	if err != nil {
		return nil, err
	}
	file := func(name string) string { return filepath.Join(version, name) }
	pair, err := tls.LoadX509KeyPair(file("svid.pem"), file("svid_key.pem"))
	if err != nil {
		return nil, err
	}
	bundle, err := os.ReadFile(file("bundle.pem"))
	if err != nil {
		return nil, err
	}
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(bundle)
	config := &tls.Config{
		Certificates:           []tls.Certificate{pair},
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              authorities,
		SessionTicketsDisabled: true, // Go does not verify a resumed session again.
	}
	if check {
		lists, err := os.ReadFile(file("crl.pem"))
		if err != nil {
			return nil, err
		}
		config.VerifyConnection, err = revocation(lists)
		if err != nil {
			return nil, err
		}
	}
	return config, nil
}

// revocation is the part that crypto/tls does not have: whether the client's certificate is on its
// issuer's list, whose signature is checked. No list for an issuer is a refusal.
func revocation(text []byte) (func(tls.ConnectionState) error, error) {
	var lists []*x509.RevocationList
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, err
		}
		lists = append(lists, list)
	}
	return func(state tls.ConnectionState) error {
		leaf, issuer := state.VerifiedChains[0][0], state.VerifiedChains[0][1]
		for _, list := range lists {
			if string(list.RawIssuer) != string(issuer.RawSubject) {
				continue
			}
			if err := list.CheckSignatureFrom(issuer); err != nil {
				return err
			}
			for _, entry := range list.RevokedCertificateEntries {
				if entry.SerialNumber.Cmp(leaf.SerialNumber) == 0 {
					return errors.New("the certificate is revoked")
				}
			}
			return nil
		}
		return errors.New("its issuer has no list")
	}, nil
}

func serve(keys string, check bool) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	var current atomic.Pointer[tls.Config]
	config, err := load(keys, check)
	if err != nil {
		return err
	}
	current.Store(config)
	go func() {
		for range hangup {
			if config, err := load(keys, check); err == nil {
				current.Store(config)
			} else {
				fmt.Fprintln(os.Stderr, err)
			}
		}
	}()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println("READY", listener.Addr())
	for {
		plain, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer plain.Close()
			connection := tls.Server(plain, current.Load())
			_, _ = io.Copy(connection, connection)
		}()
	}
}

func judge(online bool) error {
	ctx := context.Background()
	client, err := workloadapi.New(ctx)
	if err != nil {
		return err
	}
	source, err := workloadapi.NewJWTSource(ctx, workloadapi.WithClient(client))
	if err != nil {
		return err
	}
	fmt.Println("READY -")
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if online {
			_, err = client.ValidateJWTSVID(ctx, lines.Text(), audience)
		} else {
			_, err = jwtsvid.ParseAndValidate(lines.Text(), source, []string{audience})
		}
		if err != nil {
			fmt.Println("REFUSED", err)
		} else {
			fmt.Println("ACCEPTED")
		}
	}
	return lines.Err()
}
