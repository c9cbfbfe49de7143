package main

import (
	"bytes"
	"context"
	"io"
	"net"
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
