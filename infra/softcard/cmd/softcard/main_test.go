package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestRun plays a vpcd that is stopped and started: the card is put in both times.
func TestRun(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"-profile", "canokey", "-id", "000102030405060708090A0B0C0D0E0F", "-address", listener.Addr().String()})
	}()
	for range 2 {
		conn, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := conn.Write([]byte{0, 1, 4}); err != nil {
			t.Fatal(err)
		}
		atr := make([]byte, 2+17)
		if _, err := io.ReadFull(conn, atr); err != nil || !bytes.Contains(atr, []byte("Canokey")) {
			t.Errorf("ATR % X, %v", atr, err)
		}
		_ = conn.Close()
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for _, args := range [][]string{{"-profile", "paper"}, {"-pin", "1"}, {"-id", "x"}} {
		if run(ctx, args) == nil {
			t.Errorf("%v was taken", args)
		}
	}
}

// TestFile: a card that is blocked at first is found so, as it was left, by the next.
func TestFile(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	file := filepath.Join(t.TempDir(), "card.json")
	for _, want := range []string{"6983", "63C5"} {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- run(ctx, []string{"-file", file, "-blocked", "-address", listener.Addr().String()})
		}()
		conn, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		for _, exchange := range [][2]string{
			{"00A4040009A00000030800001000", "9000"},
			{"00200080", want},
			{"002C0080103132333435363738363534333231FFFF", "9000"},
		} {
			command, err := hex.DecodeString(exchange[0])
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write(append([]byte{0, byte(len(command))}, command...)); err != nil {
				t.Fatal(err)
			}
			length := make([]byte, 2)
			if _, err := io.ReadFull(conn, length); err != nil {
				t.Fatal(err)
			}
			answer := make([]byte, binary.BigEndian.Uint16(length))
			if _, err := io.ReadFull(conn, answer); err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprintf("%X", answer); !strings.HasSuffix(got, exchange[1]) {
				t.Errorf("%s answered %s, want %s", exchange[0], got, exchange[1])
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		_ = conn.Close()
	}
}
