package testserver

import (
	"net/http"
	"testing"
)

// The example of the IAM User Guide ("Signature Version 4 signing elements" and its test
// suite).
func TestSignatureExample(t *testing.T) {
	r := &http.Request{Method: "GET", RequestURI: "/?Action=ListUsers&Version=2010-05-08", Host: "iam.amazonaws.com", Header: http.Header{
		"Content-Type": {"application/x-www-form-urlencoded; charset=utf-8"},
		"X-Amz-Date":   {"20150830T123600Z"},
		"Authorization": {"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, " +
			"SignedHeaders=content-type;host;x-amz-date, Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"},
	}}
	credential, signed, want := signatureParts(r)
	got := sign("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", credential, r.Header.Get("X-Amz-Date"), canonicalRequest(r, signed, nil))
	if got != want {
		t.Errorf("signature %s, want %s", got, want)
	}
}

// What API Gateway itself said that the canonical path should have been, in its answers
// to wrong signatures: okigan/awscurl 61, badslug/Paw-AWSSignature4DynamicValue 23 and
// aws/aws-sdk-net 3132 on GitHub.
func TestCanonicalPaths(t *testing.T) {
	for sent, want := range map[string]string{
		"/test/@connections/atntqfjloAMCECg=":         "/test/%40connections/atntqfjloAMCECg%3D",
		"/dev/%40connections/asnFYeJtCGYCEZQ%3D":      "/dev/%2540connections/asnFYeJtCGYCEZQ%253D",
		"/$default/%40connections/P-S_9e-7liACH9A%3D": "/%24default/%2540connections/P-S_9e-7liACH9A%253D",
	} {
		if got := canonicalPath(sent); got != want {
			t.Errorf("%s: %s, want %s", sent, got, want)
		}
	}
}
