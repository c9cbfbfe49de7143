package testserver

import (
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestLambda(t *testing.T) {
	echo := filepath.Join(t.TempDir(), "bootstrap")
	if out, err := exec.Command("go", "build", "-o", echo, "./testdata/echo").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	start := func(t *testing.T) *Lambda {
		t.Helper()
		l, err := StartLambda(echo, []string{"GIVEN=yes"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(l.Stop)
		return l
	}
	wantError := func(t *testing.T, err error, typ, message string) {
		t.Helper()
		var fe *FunctionError
		if !errors.As(err, &fe) || fe.Type != typ || !strings.Contains(fe.Message, message) {
			t.Errorf("error %v, want %s: ...%s", err, typ, message)
		}
	}

	t.Run("several in a row", func(t *testing.T) {
		l := start(t)
		if l.Ready <= 0 || l.Ready > 10*time.Second {
			t.Errorf("ready after %v", l.Ready)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		ids := map[string]bool{}
		for i := range 3 {
			out, err := l.Invoke(ctx, []byte(`"work"`))
			if err != nil {
				t.Fatal(err)
			}
			var got map[string]string
			if err := json.Unmarshal(out, &got); err != nil {
				t.Fatal(err)
			}
			deadline, _ := ctx.Deadline()
			if got["did"] != "work" || got["given"] != "yes" || got["home"] != "" || got["deadline"] != deadline.UTC().Format(time.RFC3339) ||
				!strings.HasPrefix(got["arn"], "arn:aws:lambda:") || !strings.HasPrefix(got["trace"], "Root=1-") {
				t.Errorf("got %v", got)
			}
			if ids[got["id"]] = true; len(ids) != i+1 {
				t.Errorf("request id %s twice", got["id"])
			}
			_, err = l.Invoke(ctx, []byte(`"fail"`))
			wantError(t, err, "errorString", "no")
		}
		l.Stop() // the log is whole once the process has ended
		if got := strings.Count(l.Log(), "asked to work\n"); got != 3 {
			t.Errorf("the log has %d lines of 3: %s", got, l.Log())
		}
		_, err := l.Invoke(ctx, []byte(`"work"`))
		wantError(t, err, "Runtime.ExitError", "killed")
	})
	t.Run("panic", func(t *testing.T) {
		l := start(t)
		_, err := l.Invoke(t.Context(), []byte(`"panic"`))
		wantError(t, err, "string", "on fire")
		_, err = l.Invoke(t.Context(), []byte(`"work"`)) // the process has ended
		wantError(t, err, "Runtime.ExitError", "exit status 1")
	})
	t.Run("exit", func(t *testing.T) {
		_, err := start(t).Invoke(t.Context(), []byte(`"exit"`))
		wantError(t, err, "Runtime.ExitError", "exit status 3")
	})
	t.Run("timeout", func(t *testing.T) {
		l := start(t)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err := l.Invoke(ctx, []byte(`"sleep"`))
		wantError(t, err, "Sandbox.Timedout", "deadline exceeded")
		_, err = l.Invoke(t.Context(), []byte(`"work"`))
		wantError(t, err, "Runtime.ExitError", "killed")
	})
	for init, want := range map[string]FunctionError{
		"exit":   {"Runtime.ExitError", "TABLE is not set"},
		"report": {"Config", "TABLE is not set"},
	} {
		t.Run("init "+init, func(t *testing.T) {
			_, err := StartLambda(echo, []string{"INIT=" + init})
			wantError(t, err, want.Type, want.Message)
		})
	}
	t.Run("no such file", func(t *testing.T) {
		if _, err := StartLambda(echo+"x", nil); err == nil {
			t.Error("no error")
		}
	})
}
