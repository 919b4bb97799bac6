// Workload is the interop workload in Go: go-spiffe against Mayfly, in the vocabulary of
// ../../README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"mayfly.invalid/interop/say"
)

const (
	audience = "interop"
	call     = 10 * time.Second
)

func main() {
	once := flag.Bool("once", false, "fetch, validate and leave")
	untilRotated := flag.Bool("until-rotated", false, "stay until the second X.509-SVID")
	untilEnded := flag.Bool("until-ended", false, "stay until the task is over")
	patience := flag.Float64("patience", 60, "seconds to wait for either")
	flag.Parse()
	if !*once && !*untilRotated && !*untilEnded {
		say.Exit(errors.New("one of --once --until-rotated --until-ended is needed"))
	}
	say.Exit(run(*untilRotated, *untilEnded, time.Duration(*patience*float64(time.Second))))
}

func run(untilRotated, untilEnded bool, patience time.Duration) error {
	ctx := context.Background()
	client, err := workloadapi.New(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	first, err := fetchX509(ctx, client)
	if err != nil {
		return err
	}
	token, err := fetchJWT(ctx, client)
	if err != nil {
		return err
	}
	source, err := newSource(ctx, client)
	if err != nil {
		return err
	}
	defer source.Close()
	if err := mtls(ctx, source, first.ID); err != nil {
		return err
	}
	if untilRotated {
		return rotated(ctx, source, patience)
	}
	if untilEnded {
		return ended(ctx, client, source, token, patience)
	}
	return nil
}

func fetchX509(ctx context.Context, client *workloadapi.Client) (*x509svid.SVID, error) {
	ctx, cancel := context.WithTimeout(ctx, call)
	defer cancel()
	fetched, err := client.FetchX509Context(ctx)
	if err != nil {
		return nil, err
	}
	svid := fetched.DefaultSVID()
	say.X509(svid.ID.String(), svid.Certificates[0])
	for _, bundle := range fetched.Bundles.Bundles() {
		say.Event("bundle", say.Fields{"kind": "x509", "trust_domain": bundle.TrustDomain().Name()})
	}
	if _, _, err := x509svid.Verify(svid.Certificates, fetched.Bundles); err != nil {
		return nil, err
	}
	say.Event("validated", say.Fields{"what": "x509"})
	return svid, nil
}

func fetchJWT(ctx context.Context, client *workloadapi.Client) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, call)
	defer cancel()
	source, err := workloadapi.NewJWTSource(ctx, workloadapi.WithClient(client))
	if err != nil {
		return "", err
	}
	defer source.Close()
	svid, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
	if err != nil {
		return "", err
	}
	say.Event("jwt", say.Fields{"spiffe_id": svid.ID.String(), "exp": svid.Expiry.Unix()})
	bundle, err := source.GetJWTBundleForTrustDomain(svid.ID.TrustDomain())
	if err != nil {
		return "", err
	}
	say.Event("bundle", say.Fields{"kind": "jwt", "trust_domain": bundle.TrustDomain().Name()})
	if _, err := jwtsvid.ParseAndValidate(svid.Marshal(), source, []string{audience}); err != nil {
		return "", err
	}
	say.Event("validated", say.Fields{"what": "jwt"})
	if _, err := client.ValidateJWTSVID(ctx, svid.Marshal(), audience); err != nil {
		return "", err
	}
	say.Event("validated", say.Fields{"what": "jwt_online"})
	return svid.Marshal(), nil
}

func newSource(ctx context.Context, client *workloadapi.Client) (*workloadapi.X509Source, error) {
	ctx, cancel := context.WithTimeout(ctx, call)
	defer cancel()
	return workloadapi.NewX509Source(ctx, workloadapi.WithClient(client))
}

// mtls holds both ends of one connection, each asking the other for a certificate.
func mtls(ctx context.Context, source *workloadapi.X509Source, self spiffeid.ID) error {
	ctx, cancel := context.WithTimeout(ctx, call)
	defer cancel()
	sameDomain := tlsconfig.AuthorizeMemberOf(self.TrustDomain())
	listener, err := spiffetls.ListenWithMode(ctx, "tcp", "127.0.0.1:0",
		spiffetls.MTLSServerWithSource(sameDomain, source))
	if err != nil {
		return err
	}
	defer listener.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			defer conn.Close()
			_, err = io.CopyN(conn, conn, 1)
		}
		served <- err
	}()
	conn, err := spiffetls.DialWithMode(ctx, "tcp", listener.Addr().String(),
		spiffetls.MTLSClientWithSource(sameDomain, source))
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("m")); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		return errors.Join(err, <-served)
	}
	if err := <-served; err != nil {
		return err
	}
	peer, err := spiffetls.PeerIDFromConn(conn)
	if err != nil {
		return err
	}
	say.Event("mtls", say.Fields{"ok": peer == self, "peer": peer.String()})
	return nil
}

// rotated waits for a second certificate on the one stream that the source keeps open.
func rotated(ctx context.Context, source *workloadapi.X509Source, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	first, err := source.GetX509SVID()
	if err != nil {
		return err
	}
	for {
		svid, err := source.GetX509SVID()
		if err != nil {
			return err
		}
		if serial := say.Serial(svid.Certificates[0]); serial != say.Serial(first.Certificates[0]) {
			say.X509(svid.ID.String(), svid.Certificates[0])
			say.Event("rotated", say.Fields{"serial": serial})
			return nil
		}
		select {
		case <-source.Updated():
		case <-ctx.Done():
			return fmt.Errorf("no rotation within %s", patience)
		}
	}
}

// watcher hears what go-spiffe tells between its own retries.
type watcher struct {
	updates chan struct{}
	errs    chan error
}

func (w *watcher) OnX509ContextUpdate(*workloadapi.X509Context) {
	select {
	case w.updates <- struct{}{}:
	default:
	}
}

func (w *watcher) OnX509ContextWatchError(err error) {
	select {
	case w.errs <- err:
	default:
	}
}

func ended(ctx context.Context, client *workloadapi.Client, source *workloadapi.X509Source, token string, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	w := &watcher{updates: make(chan struct{}, 1), errs: make(chan error, 1)}
	go func() { _ = client.WatchX509Context(ctx, w) }()
	select {
	case <-w.updates:
		say.Event("waiting", nil)
	case err := <-w.errs:
		return err
	}
	select {
	case err := <-w.errs:
		kept := "keeps the last SVID"
		if _, failed := source.GetX509SVID(); failed != nil {
			kept = "gives " + failed.Error()
		}
		say.Event("ended", say.Fields{"code": say.Code(err), "detail": fmt.Sprintf("%v; X509Source %s", err, kept)})
	case <-ctx.Done():
		say.Event("unseen", nil)
		return nil
	}
	refused("jwt", func(ctx context.Context) error {
		_, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
		return err
	})
	refused("jwt_online", func(ctx context.Context) error {
		_, err := client.ValidateJWTSVID(ctx, token, audience)
		return err
	})
	return nil
}

func refused(what string, ask func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), call)
	defer cancel()
	err := ask(ctx)
	if err == nil {
		say.Event("error", say.Fields{"detail": what + " was still granted after the end"})
		return
	}
	say.Event("refused", say.Fields{"what": what, "code": say.Code(err), "detail": err.Error()})
}
