package testserver

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Lambda is one execution environment: a bootstrap process, and the Runtime API
// ("Using the Lambda runtime API for custom runtimes") that it polls for work.
type Lambda struct {
	Ready time.Duration // from the start of the process until it first asked for work

	cmd    *exec.Cmd
	log    Buffer
	server *http.Server
	polled sync.Once
	ready  chan struct{} // closed at the first poll
	exited chan struct{} // closed when the process has ended
	work   chan *invocation

	invoking sync.Mutex // an environment serves one invocation at a time

	mu      sync.Mutex
	current *invocation
	initErr error // what the process reported to /runtime/init/error
	count   int
}

type invocation struct {
	id       string
	payload  []byte
	deadline time.Time
	done     chan struct{} // closed when response or err is set
	response []byte
	err      error
}

// FunctionError is the function's failure, in its own words or in Lambda's:
// Type is Runtime.ExitError when the process ended, Sandbox.Timedout when the
// invocation's time was up.
type FunctionError struct {
	Type    string `json:"errorType"`
	Message string `json:"errorMessage"`
}

// Error implements error.
func (e *FunctionError) Error() string { return e.Type + ": " + e.Message }

// StartLambda runs the binary with env as its whole environment, AWS's own
// variables aside, and returns when it asks for work. A process that ends or
// reports an error before that is a FunctionError, and so is one that takes
// over 10 s ("Understanding the Lambda execution environment lifecycle").
func StartLambda(bootstrap string, env []string) (*Lambda, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start the Runtime API: %w", err)
	}
	l := &Lambda{
		cmd:    exec.Command(bootstrap),
		ready:  make(chan struct{}),
		exited: make(chan struct{}),
		work:   make(chan *invocation),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /2018-06-01/runtime/invocation/next", l.next)
	mux.HandleFunc("POST /2018-06-01/runtime/invocation/{id}/response", l.finish)
	mux.HandleFunc("POST /2018-06-01/runtime/invocation/{id}/error", l.finish)
	mux.HandleFunc("POST /2018-06-01/runtime/init/error", l.failInit)
	l.server = &http.Server{Handler: mux}
	go func() { _ = l.server.Serve(listener) }()

	l.cmd.Env = append([]string{
		"AWS_LAMBDA_RUNTIME_API=" + listener.Addr().String(),
		"AWS_LAMBDA_FUNCTION_NAME=pinward",
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE=256",
		"AWS_REGION=eu-central-1",
	}, env...)
	l.cmd.Stdout, l.cmd.Stderr = &l.log, &l.log
	l.cmd.WaitDelay = time.Second
	start := time.Now()
	if err := l.cmd.Start(); err != nil {
		_ = l.server.Close()
		return nil, fmt.Errorf("start %s: %w", bootstrap, err)
	}
	go func() { _ = l.cmd.Wait(); close(l.exited) }()

	select {
	case <-l.ready:
		l.Ready = time.Since(start)
		return l, nil
	case <-l.exited:
		err = l.exitError()
	case <-time.After(10 * time.Second):
		err = &FunctionError{"Sandbox.Timedout", "not ready after 10 s: " + l.Log()}
	}
	l.Stop()
	return nil, err
}

// Invoke hands the payload to the function and returns its answer, or a
// FunctionError. The function's time is up at the context's deadline, or in
// 15 minutes if that is sooner. As with Lambda, the environment does not
// outlive an invocation whose time is up: its process is killed.
func (l *Lambda) Invoke(ctx context.Context, payload []byte) ([]byte, error) {
	l.invoking.Lock()
	defer l.invoking.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	inv := &invocation{payload: payload, done: make(chan struct{})}
	inv.deadline, _ = ctx.Deadline()
	l.mu.Lock()
	l.count++
	inv.id = fmt.Sprintf("00000000-0000-4000-8000-%012d", l.count)
	l.current = inv
	l.mu.Unlock()

	work := l.work
	for {
		select {
		case work <- inv:
			work = nil // handed over: now only wait
		case <-inv.done:
			return inv.response, inv.err
		case <-l.exited:
			select {
			case <-inv.done: // it answered first
				return inv.response, inv.err
			default:
				return nil, l.exitError()
			}
		case <-ctx.Done():
			l.kill()
			return nil, &FunctionError{"Sandbox.Timedout", "Task timed out: " + ctx.Err().Error()}
		}
	}
}

// Log returns what the process has written to stdout and stderr.
func (l *Lambda) Log() string { return l.log.String() }

// Stop ends the process and the Runtime API. It may be called twice.
func (l *Lambda) Stop() {
	l.kill()
	_ = l.server.Close()
}

func (l *Lambda) kill() {
	_ = l.cmd.Process.Kill()
	<-l.exited
}

// exitError says why the process ended.
func (l *Lambda) exitError() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.initErr != nil {
		return l.initErr
	}
	return &FunctionError{"Runtime.ExitError", l.cmd.ProcessState.String() + ": " + l.Log()}
}

func (l *Lambda) next(w http.ResponseWriter, r *http.Request) {
	l.polled.Do(func() { close(l.ready) })
	select {
	case <-r.Context().Done():
	case inv := <-l.work:
		h := w.Header()
		h.Set("Content-Type", "application/json")
		h.Set("Lambda-Runtime-Aws-Request-Id", inv.id)
		h.Set("Lambda-Runtime-Deadline-Ms", strconv.FormatInt(inv.deadline.UnixMilli(), 10))
		h.Set("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:eu-central-1:123456789012:function:pinward")
		h.Set("Lambda-Runtime-Trace-Id", "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=0")
		_, _ = w.Write(inv.payload)
	}
}

// finish takes the answer or the error of the invocation that is under way.
func (l *Lambda) finish(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	inv := l.current
	if inv == nil || inv.id != r.PathValue("id") {
		http.Error(w, "no such invocation", http.StatusBadRequest)
		return
	}
	l.current = nil
	if strings.HasSuffix(r.URL.Path, "/error") {
		inv.err = functionError(body)
	} else {
		inv.response = body
	}
	close(inv.done)
	w.WriteHeader(http.StatusAccepted)
}

func (l *Lambda) failInit(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	l.mu.Lock()
	l.initErr = functionError(body)
	l.mu.Unlock()
	w.WriteHeader(http.StatusAccepted)
}

func functionError(body []byte) error {
	e := &FunctionError{}
	if err := json.Unmarshal(body, e); err != nil {
		return &FunctionError{"Runtime.Unknown", string(body)}
	}
	return e
}
