package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"
)

// prompt asks a person, or reads their answers from lines.
type prompt struct {
	in  io.Reader
	out io.Writer
	// fd is the terminal, with its state before; -1 without one.
	fd     int
	before *term.State
	// lines, if set, is a conversation of PAM.
	lines *lines
}

func newPrompt(in io.Reader, out io.Writer) *prompt {
	p := &prompt{in: in, out: out, fd: -1}
	if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		if state, err := term.GetState(int(f.Fd())); err == nil {
			p.fd, p.before = int(f.Fd()), state
		}
	}
	return p
}

func (p *prompt) isTerminal() bool { return p.fd >= 0 }

func (p *prompt) say(format string, args ...any) {
	if p.lines != nil {
		p.lines.write("I", fmt.Sprintf(format, args...))
		return
	}
	fmt.Fprintf(p.out, format+"\n", args...)
}

// errNoAnswer: the input has ended.
var errNoAnswer = errors.New("the input has ended where an answer was needed")

// ask returns what is answered, without the end of the line. hidden is not shown where it
// is typed.
func (p *prompt) ask(ctx context.Context, question string, hidden bool) ([]byte, error) {
	switch {
	case p.lines != nil && hidden:
		p.lines.write("P", question)
	case p.lines != nil:
		p.lines.write("E", question)
	}
	fmt.Fprint(p.out, question)
	type line struct {
		text []byte
		err  error
	}
	lines := make(chan line, 1)
	go func() {
		var l line
		if hidden && p.isTerminal() {
			l.text, l.err = term.ReadPassword(p.fd)
		} else {
			l.text, l.err = readLine(p.in)
		}
		lines <- l
	}()
	select {
	case l := <-lines:
		if hidden || !p.isTerminal() {
			fmt.Fprintln(p.out)
		}
		if errors.Is(l.err, io.EOF) {
			return nil, errNoAnswer
		}
		return bytes.TrimSpace(l.text), l.err
	case <-ctx.Done():
		if p.isTerminal() {
			_ = term.Restore(p.fd, p.before)
		}
		fmt.Fprintln(p.out)
		return nil, ctx.Err()
	}
}

// maxLine is the longest answer.
const maxLine = 1000

// readLine reads to the end of a line and nothing after it.
func readLine(r io.Reader) ([]byte, error) {
	text := make([]byte, 0, maxLine)
	var b [1]byte
	for len(text) < maxLine {
		n, err := r.Read(b[:])
		switch {
		case n == 1 && b[0] == '\n':
			return text, nil
		case n == 1:
			text = append(text, b[0])
		case errors.Is(err, io.EOF) && len(text) > 0:
			return text, nil
		case err != nil:
			return nil, err
		}
	}
	return nil, fmt.Errorf("an answer is longer than %d bytes", maxLine)
}
