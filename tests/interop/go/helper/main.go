// Helper runs the real spiffe-helper against Mayfly and reads its files back with go-spiffe, in the
// vocabulary of ../../README.md. The workload that holds the task is the spiffe-helper process.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"mayfly.invalid/interop/say"
)

const (
	audience = "interop"
	call     = 10 * time.Second
	glance   = 100 * time.Millisecond
)

// denied finds the gRPC code in a line of spiffe-helper's log.
var denied = regexp.MustCompile(`code = (PermissionDenied)`)

func main() {
	once := flag.Bool("once", false, "one run of spiffe-helper, then read its files")
	untilRotated := flag.Bool("until-rotated", false, "stay until the second X.509-SVID")
	untilEnded := flag.Bool("until-ended", false, "stay until the task is over")
	patience := flag.Float64("patience", 60, "seconds to wait for either")
	program := flag.String("spiffe-helper", "spiffe-helper", "the program to run")
	flag.Parse()
	if !*once && !*untilRotated && !*untilEnded {
		say.Exit(errors.New("one of --once --until-rotated --until-ended is needed"))
	}
	say.Exit(run(*program, *untilRotated, *untilEnded, time.Duration(*patience*float64(time.Second))))
}

func run(program string, untilRotated, untilEnded bool, patience time.Duration) error {
	dir, err := os.MkdirTemp("", "mayfly-interop-helper-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := oneShot(program, dir); err != nil {
		return err
	}
	first, err := readFiles(dir)
	if err != nil {
		return err
	}
	switch {
	case untilRotated:
		return rotated(program, dir, first, patience)
	case untilEnded:
		return ended(program, dir, patience)
	default:
		return nil
	}
}

// configure writes the settings. spiffe-helper wants the socket as a bare path.
func configure(dir string, daemon bool) (string, error) {
	path := filepath.Join(dir, "helper.conf")
	socket := strings.TrimPrefix(os.Getenv("SPIFFE_ENDPOINT_SOCKET"), "unix://")
	text := fmt.Sprintf(`agent_address = %q
cert_dir = %q
daemon_mode = %t
svid_file_name = "svid.pem"
svid_key_file_name = "key.pem"
svid_bundle_file_name = "bundle.pem"
jwt_bundle_file_name = "jwks.json"
jwt_svids = [{ jwt_audience = %q, jwt_svid_file_name = "jwt.token" }]
`, socket, dir, daemon, audience)
	return path, os.WriteFile(path, []byte(text), 0o600)
}

func oneShot(program, dir string) error {
	conf, err := configure(dir, false)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*call)
	defer cancel()
	if out, err := exec.CommandContext(ctx, program, "-config", conf).CombinedOutput(); err != nil {
		return fmt.Errorf("spiffe-helper: %w: %s", err, out)
	}
	return nil
}

// readFiles validates what lies on disk as a server that was given these files would.
func readFiles(dir string) (string, error) {
	file := func(name string) string { return filepath.Join(dir, name) }
	svid, err := x509svid.Load(file("svid.pem"), file("key.pem"))
	if err != nil {
		return "", err
	}
	say.X509(svid.ID.String(), svid.Certificates[0])
	domain := svid.ID.TrustDomain()
	bundle, err := x509bundle.Load(domain, file("bundle.pem"))
	if err != nil {
		return "", err
	}
	say.Event("bundle", say.Fields{"kind": "x509", "trust_domain": domain.Name()})
	if _, _, err := x509svid.Verify(svid.Certificates, bundle); err != nil {
		return "", err
	}
	say.Event("validated", say.Fields{"what": "x509"})
	return say.Serial(svid.Certificates[0]), readJWT(domain, file)
}

func readJWT(domain spiffeid.TrustDomain, file func(string) string) error {
	token, err := os.ReadFile(file("jwt.token"))
	if err != nil {
		return err
	}
	keys, err := helperJWKS(file("jwks.json"), domain)
	if err != nil {
		return err
	}
	say.Event("bundle", say.Fields{"kind": "jwt", "trust_domain": domain.Name()})
	svid, err := jwtsvid.ParseAndValidate(strings.TrimSpace(string(token)), keys, []string{audience})
	if err != nil {
		return err
	}
	say.Event("jwt", say.Fields{"spiffe_id": svid.ID.String(), "exp": svid.Expiry.Unix()})
	say.Event("validated", say.Fields{"what": "jwt"})
	return nil
}

// daemon starts spiffe-helper for good and hands out the lines of its log.
func daemon(program, dir string) (*exec.Cmd, <-chan string, error) {
	conf, err := configure(dir, true)
	if err != nil {
		return nil, nil, err
	}
	command := exec.Command(program, "-config", conf)
	log, err := command.StderrPipe()
	if err != nil {
		return nil, nil, err
	}
	command.Stdout = command.Stderr
	if err := command.Start(); err != nil {
		return nil, nil, err
	}
	lines := make(chan string, 1024)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(log); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	return command, lines, nil
}

func stop(command *exec.Cmd) {
	_ = command.Process.Kill()
	_ = command.Wait()
}

// waitForSerial returns once svid.pem holds a leaf that is not the one named.
func waitForSerial(dir, not string, patience time.Duration) (*x509svid.SVID, error) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(glance) {
		// Certificate and key are two files: between the two writes they do not match.
		svid, err := x509svid.Load(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "key.pem"))
		if err == nil && say.Serial(svid.Certificates[0]) != not {
			return svid, nil
		}
	}
	return nil, fmt.Errorf("no new certificate on disk within %s", patience)
}

// rotated waits for two new serials: a new process is a new task, so its first one proves nothing.
func rotated(program, dir, first string, patience time.Duration) error {
	command, lines, err := daemon(program, dir)
	if err != nil {
		return err
	}
	defer stop(command)
	go func() {
		for range lines { // Nobody reads the log here, and a full pipe would stop the program.
		}
	}()
	started, err := waitForSerial(dir, first, patience)
	if err != nil {
		return err
	}
	renewed, err := waitForSerial(dir, say.Serial(started.Certificates[0]), patience)
	if err != nil {
		return err
	}
	say.X509(renewed.ID.String(), renewed.Certificates[0])
	say.Event("rotated", say.Fields{"serial": say.Serial(renewed.Certificates[0])})
	return nil
}

func ended(program, dir string, patience time.Duration) error {
	before, err := x509svid.Load(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		return err
	}
	command, lines, err := daemon(program, dir)
	if err != nil {
		return err
	}
	defer stop(command)
	held, err := waitForSerial(dir, say.Serial(before.Certificates[0]), patience)
	if err != nil {
		return err
	}
	say.X509(held.ID.String(), held.Certificates[0])
	say.Event("waiting", nil)
	limit := time.After(patience)
	for {
		select {
		case line, open := <-lines:
			if !open {
				return errors.New("spiffe-helper is gone")
			}
			if denied.MatchString(line) {
				_, err := os.Stat(filepath.Join(dir, "key.pem"))
				say.Event("ended", say.Fields{"code": "PERMISSION_DENIED",
					"detail": fmt.Sprintf("%s; key file still there: %t", line, err == nil)})
				return nil
			}
		case <-limit:
			say.Event("unseen", nil)
			return nil
		}
	}
}

// helperJWKS reads the JWT bundle file of spiffe-helper: by trust domain, a JWK set in base64.
func helperJWKS(path string, domain spiffeid.TrustDomain) (*jwtbundle.Bundle, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var sets map[string][]byte
	if err := json.Unmarshal(text, &sets); err != nil {
		return nil, err
	}
	return jwtbundle.Parse(domain, sets[domain.Name()])
}
