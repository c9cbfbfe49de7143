// Package testserver starts the servers that tests run against. DynamoDB and
// SES are npm packages that Pinward did not write, named in npm/package.json;
// `make deps` installs them. What cannot be installed (the Lambda runtime, KMS,
// DynamoDB's transactions) is written here, as small as its documentation lets
// it be.
package testserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// Need fails the test in CI and skips it, saying why, anywhere else. Tests
// call it when a server that they need cannot be had.
func Need(tb testing.TB, err error) {
	tb.Helper()
	if err == nil {
		return
	}
	if os.Getenv("CI") != "" {
		tb.Fatalf("needed in CI: %v", err)
	}
	tb.Skipf("NOT TESTED HERE: %v", err)
}

// dir is the folder of package.json.
func dir() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "npm")
}

// Module returns the folder of an installed npm package, or an error that says
// how to install it.
func Module(name string) (string, error) {
	path := filepath.Join(dir(), "node_modules", filepath.FromSlash(name))
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("npm package %s is not installed: run `make deps`", name)
	}
	return path, nil
}

// node runs a script of an npm package in the background and waits until ready
// answers nil. stop ends it.
func node(module, script string, args, env []string, ready func() error) (stop func(), err error) {
	path, err := Module(module)
	if err != nil {
		return nil, err
	}
	if _, err := exec.LookPath("node"); err != nil {
		return nil, fmt.Errorf("node is not installed: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "node", append([]string{filepath.Join(path, filepath.FromSlash(script))}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	var out Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, fmt.Errorf("start %s: %w", module, err)
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	stop = func() { cancel(); <-exited }

	deadline := time.Now().Add(30 * time.Second)
	for {
		err := ready()
		if err == nil {
			return stop, nil
		}
		select {
		case <-exited:
			cancel()
			return nil, fmt.Errorf("%s ended at once: %s", module, strings.TrimSpace(out.String()))
		case <-time.After(30 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			stop()
			return nil, fmt.Errorf("%s is not ready after 30 s: %w: %s", module, err, out.String())
		}
	}
}

// freeAddress returns a loopback address that nothing listens on.
func freeAddress() (host string, port string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", err
	}
	host, port, err = net.SplitHostPort(l.Addr().String())
	return host, port, errors.Join(err, l.Close())
}

// answers returns a ready function: something accepts connections there.
func answers(host, port string) func() error {
	return func() error {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(host, port), time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	}
}
