package pin

import (
	"encoding/json"
	"fmt"
)

// Hours are whole hours, each a reminder's. In JSON they are a list; what is read may also be
// one number, as it was when there was one reminder, and 0 is none then.
type Hours []int

// UnmarshalJSON implements json.Unmarshaler.
func (h *Hours) UnmarshalJSON(b []byte) error {
	var one int
	if json.Unmarshal(b, &one) != nil {
		return json.Unmarshal(b, (*[]int)(h))
	}
	*h = nil
	if one != 0 {
		*h = Hours{one}
	}
	return nil
}

// policyJSON is a policy's JSON form, in the field names that Validate uses. What is
// left out is off, 0 or none.
type policyJSON struct {
	MinLength             int       `json:"minLength"`
	MaxLength             int       `json:"maxLength"`
	Alphabet              Alphabet  `json:"alphabet"`
	RequireClasses        []Class   `json:"requireClasses,omitempty"`
	DisallowSequential    bool      `json:"disallowSequential,omitempty"`
	MaxRun                int       `json:"maxRun,omitempty"`
	DisallowConstantDelta bool      `json:"disallowConstantDelta,omitempty"`
	Blocklist             Blocklist `json:"blocklist"`
	BlocklistEntries      []string  `json:"blocklistEntries,omitempty"`
	DisallowContext       bool      `json:"disallowContext,omitempty"`
	History               int       `json:"history,omitempty"`
	MinLengthByUsers      bool      `json:"minLengthByUsers,omitempty"`
	ExpirationHours       int       `json:"expirationHours,omitempty"`
	NotifyHoursBefore     Hours     `json:"notifyHoursBefore,omitempty"`
	MaxAttempts           int       `json:"maxAttempts"`
	LockMinutes           int       `json:"lockMinutes"`
}

// MarshalJSON implements json.Marshaler: the form in which a policy is stored, and
// sent to a bridge.
func (p Policy) MarshalJSON() ([]byte, error) { return json.Marshal(policyJSON(p)) }

// UnmarshalJSON implements json.Unmarshaler. It does not validate.
func (p *Policy) UnmarshalJSON(b []byte) error {
	var j policyJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return fmt.Errorf("read PIN policy: %w", err)
	}
	*p = Policy(j)
	return nil
}
