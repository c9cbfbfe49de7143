package command

import (
	"context"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/windows"
)

var wtsSendMessage = windows.NewLazySystemDLL("wtsapi32.dll").NewProc("WTSSendMessageW")

// showAtConsole shows a message in the session of whoever is at the machine, and does not
// wait until it is read.
func showAtConsole(_ context.Context, text string) error {
	const nobody = 0xFFFFFFFF
	session := windows.WTSGetActiveConsoleSessionId()
	if session == nobody {
		return errors.New("nobody is at the machine")
	}
	title, err := windows.UTF16FromString("Pinward")
	if err != nil {
		return err
	}
	message, err := windows.UTF16FromString(text)
	if err != nil {
		return err
	}
	if err := wtsSendMessage.Find(); err != nil {
		return err
	}
	const ownServer, information, withoutEnd, dontWait, perCharacter = 0, 0x40, 0, 0, 2
	var response uint32
	shown, _, err := wtsSendMessage.Call(ownServer, uintptr(session),
		uintptr(unsafe.Pointer(&title[0])), uintptr(perCharacter*(len(title)-1)),
		uintptr(unsafe.Pointer(&message[0])), uintptr(perCharacter*(len(message)-1)),
		information, withoutEnd, uintptr(unsafe.Pointer(&response)), dontWait)
	if shown == 0 {
		return fmt.Errorf("WTSSendMessage: %w", err)
	}
	return nil
}
