// Package say prints the events of the interop vocabulary, one JSON object a line.
package say

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"unicode"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Fields are what an event carries besides its name.
type Fields map[string]any

var mu sync.Mutex

// Event prints one event.
func Event(name string, fields Fields) {
	out := Fields{"event": name}
	for key, value := range fields {
		out[key] = value
	}
	line, err := json.Marshal(out)
	if err != nil {
		panic(err) // Only strings and numbers are ever put in.
	}
	mu.Lock()
	defer mu.Unlock()
	fmt.Println(string(line))
}

// X509 prints what a relying party would look at first in leaf.
func X509(id string, leaf *x509.Certificate) {
	Event("x509", Fields{"spiffe_id": id, "serial": Serial(leaf), "not_after": leaf.NotAfter.Unix()})
}

// Serial is the serial number in hex without leading zeros.
func Serial(leaf *x509.Certificate) string {
	return leaf.SerialNumber.Text(16)
}

// Code is the gRPC code of err in the spelling that all the programs share.
func Code(err error) string {
	return Name(status.Code(err))
}

// Name spells PermissionDenied as PERMISSION_DENIED.
func Name(code codes.Code) string {
	var out []rune
	for i, r := range code.String() {
		if i > 0 && unicode.IsUpper(r) {
			out = append(out, '_')
		}
		out = append(out, unicode.ToUpper(r))
	}
	return string(out)
}

// Exit reports err, if there is one, and ends the process.
func Exit(err error) {
	if err != nil {
		Event("error", Fields{"detail": err.Error()})
		os.Exit(1)
	}
	os.Exit(0)
}
