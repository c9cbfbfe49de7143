package rest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// unmarshal is json.Unmarshal but for two things that would let a request be
// judged as one thing and used as another: an object that has a name twice, and
// text that is not valid UTF-8. Its errors are in our words and never repeat
// what was sent, as the decoder's do.
func unmarshal(data []byte, v any) error {
	if !utf8.Valid(data) {
		return errors.New("is not valid UTF-8")
	}
	if err := uniqueNames(json.NewDecoder(bytes.NewReader(data))); err != nil {
		return err
	}
	err := json.Unmarshal(data, v)
	var kind *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &kind) && kind.Field != "":
		return fmt.Errorf("%s is of the wrong type, or a number out of range", kind.Field)
	case errors.As(err, &kind):
		return errors.New("has a value of the wrong type, or a number out of range")
	case errors.As(err, &syntax):
		return fmt.Errorf("is not JSON: there is a fault at byte %d, or it ends too early", syntax.Offset)
	case err != nil:
		return errors.New("cannot be read as what the description says")
	}
	return nil
}

// uniqueNames reads one value and refuses objects with a name twice.
func uniqueNames(d *json.Decoder) error {
	token, err := d.Token()
	if err != nil {
		return nil // json.Unmarshal tells what is wrong
	}
	delim, nested := token.(json.Delim)
	if !nested {
		return nil
	}
	names := make(map[string]bool)
	for d.More() {
		if delim == '{' {
			name, err := d.Token()
			if err != nil {
				return nil
			}
			if text, ok := name.(string); ok && names[text] {
				return fmt.Errorf("has the property %q twice in one object", text)
			} else if ok {
				names[text] = true
			}
		}
		if err := uniqueNames(d); err != nil {
			return err
		}
	}
	_, _ = d.Token()
	return nil
}
