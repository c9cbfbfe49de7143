package rest

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pinward/pinward/shared/pin"
	"github.com/pinward/pinward/shared/problem"
	"github.com/pinward/pinward/shared/secret"
	"github.com/pinward/pinward/shared/tenant"
)

// pinInput is a PIN in a request.
type pinInput struct{ secret.Text }

// Schema implements huma.SchemaProvider. Length and characters are the policy's
// business: its verdict says more than a schema can.
func (pinInput) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: "password", WriteOnly: true, Description: "The PIN. It is never shown, logged or stored in the clear.", Examples: []any{"739158"}}
}

func (p *pinInput) text() *secret.Text {
	if p == nil {
		return nil
	}
	return &p.Text
}

// hours are a number or a list of them; see pin.Hours.
type hours struct {
	pin.Hours
	wrong bool // they are neither
}

// Schema implements huma.SchemaProvider. The framework would only say of something else that
// no schema matches, so it is told of the two for the description alone.
func (hours) Schema(huma.Registry) *huma.Schema {
	number := &huma.Schema{Type: huma.TypeInteger}
	return &huma.Schema{Extensions: map[string]any{"oneOf": []*huma.Schema{number, {Type: huma.TypeArray, Items: number}}}}
}

// UnmarshalJSON implements json.Unmarshaler.
func (h *hours) UnmarshalJSON(b []byte) error {
	h.wrong = h.Hours.UnmarshalJSON(b) != nil
	return nil
}

// PolicyFields are a policy as it is shown; policyInput says what they mean.
type PolicyFields struct {
	MinLength             int      `json:"minLength"`
	MaxLength             int      `json:"maxLength"`
	Alphabet              string   `json:"alphabet"`
	RequireClasses        []string `json:"requireClasses"`
	DisallowSequential    bool     `json:"disallowSequential"`
	MaxRun                int      `json:"maxRun"`
	DisallowConstantDelta bool     `json:"disallowConstantDelta"`
	Blocklist             string   `json:"blocklist"`
	BlocklistEntries      []string `json:"blocklistEntries"`
	DisallowContext       bool     `json:"disallowContext"`
	History               int      `json:"history"`
	MinLengthByUsers      bool     `json:"minLengthByUsers"`
	ExpirationHours       int      `json:"expirationHours"`
	NotifyHoursBefore     []int    `json:"notifyHoursBefore"`
	MaxAttempts           int      `json:"maxAttempts"`
	LockMinutes           int      `json:"lockMinutes"`
}

func policyOut(p pin.Policy) PolicyFields {
	b := PolicyFields{p.MinLength, p.MaxLength, string(p.Alphabet), []string{}, p.DisallowSequential, p.MaxRun, p.DisallowConstantDelta,
		string(p.Blocklist), slices.Clone(p.BlocklistEntries), p.DisallowContext, p.History, p.MinLengthByUsers, p.ExpirationHours,
		append([]int{}, p.NotifyHoursBefore...), p.MaxAttempts, p.LockMinutes}
	for _, c := range p.RequireClasses {
		b.RequireClasses = append(b.RequireClasses, string(c))
	}
	if b.BlocklistEntries == nil {
		b.BlocklistEntries = []string{}
	}
	return b
}

// policyInput is a policy in a request: what is left out is the profile's.
type policyInput struct {
	Profile               string    `json:"profile,omitempty" default:"default" doc:"What the fields left out are taken from: default, windowsHello, fips201 or nist80063b."`
	MinLength             *int      `json:"minLength,omitempty" doc:"Never below 4."`
	MaxLength             *int      `json:"maxLength,omitempty" doc:"At most 64."`
	Alphabet              *string   `json:"alphabet,omitempty" doc:"digits, alphanumeric or printable."`
	RequireClasses        *[]string `json:"requireClasses,omitempty" doc:"Of digit, lower, upper and special."`
	DisallowSequential    *bool     `json:"disallowSequential,omitempty" doc:"Refuses 1234, 4321, 1111, abcd and shorter blocks repeated, such as 1212."`
	MaxRun                *int      `json:"maxRun,omitempty" doc:"The longest run (up, down or same) anywhere inside; 0 is any."`
	DisallowConstantDelta *bool     `json:"disallowConstantDelta,omitempty" doc:"Windows Hello's rule for digits: one difference throughout, such as 1357."`
	Blocklist             *string   `json:"blocklist,omitempty" doc:"none or common: the PINs that most people choose."`
	BlocklistEntries      *[]string `json:"blocklistEntries,omitempty" doc:"The tenant's own refused PINs."`
	DisallowContext       *bool     `json:"disallowContext,omitempty" doc:"Refuses PINs found in the person's username, mail address, phone or staff number."`
	History               *int      `json:"history,omitempty" doc:"How many of a person's last PINs cannot be chosen again."`
	MinLengthByUsers      *bool     `json:"minLengthByUsers,omitempty" doc:"At least 5 characters from 1,000 users, 6 from 10,000, 7 from 100,000."`
	ExpirationHours       *int      `json:"expirationHours,omitempty" doc:"How long a PIN made from now on lives; 0 is for ever."`
	NotifyHoursBefore     *hours    `json:"notifyHoursBefore,omitempty" doc:"How long before its expiry a mail tells so: a number, or a list of up to 10, such as [168, 72, 24], each of which sends one. 0 or an empty list sends none."`
	MaxAttempts           *int      `json:"maxAttempts,omitempty" doc:"Wrong guesses until verification is locked."`
	LockMinutes           *int      `json:"lockMinutes,omitempty" doc:"How long it is locked."`
}

func overlay[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

func (in policyInput) policy() (pin.Policy, error) {
	p, err := in.over(pin.Default())
	if err != nil {
		return pin.Policy{}, err
	}
	return p, p.Validate()
}

// over returns the policy, not yet validated, where base stands for the profile default.
func (in policyInput) over(base pin.Policy) (pin.Policy, error) {
	p := base
	if in.Profile != "" && in.Profile != "default" {
		profile, err := pin.ProfileNamed(in.Profile)
		if err != nil {
			return pin.Policy{}, err
		}
		p = profile.Policy
	}
	overlay(&p.MinLength, in.MinLength)
	overlay(&p.MaxLength, in.MaxLength)
	overlay((*string)(&p.Alphabet), in.Alphabet)
	overlay(&p.DisallowSequential, in.DisallowSequential)
	overlay(&p.MaxRun, in.MaxRun)
	overlay(&p.DisallowConstantDelta, in.DisallowConstantDelta)
	overlay((*string)(&p.Blocklist), in.Blocklist)
	overlay(&p.BlocklistEntries, in.BlocklistEntries)
	overlay(&p.DisallowContext, in.DisallowContext)
	overlay(&p.History, in.History)
	overlay(&p.MinLengthByUsers, in.MinLengthByUsers)
	overlay(&p.ExpirationHours, in.ExpirationHours)
	if in.NotifyHoursBefore != nil {
		if in.NotifyHoursBefore.wrong {
			return pin.Policy{}, problem.Invalid("type", "notifyHoursBefore", "must be a whole number of hours, or a list of such numbers")
		}
		p.NotifyHoursBefore = in.NotifyHoursBefore.Hours
		slices.SortFunc(p.NotifyHoursBefore, func(a, b int) int { return cmp.Compare(b, a) })
	}
	overlay(&p.MaxAttempts, in.MaxAttempts)
	overlay(&p.LockMinutes, in.LockMinutes)
	if in.RequireClasses != nil {
		p.RequireClasses = nil
		for _, c := range *in.RequireClasses {
			p.RequireClasses = append(p.RequireClasses, pin.Class(c))
		}
	}
	return p, nil
}

type admissibleBody struct {
	Length int    `json:"length"`
	PINs   string `json:"pins" doc:"The exact number, in decimal digits."`
}

// admissible lists how many numeric PINs a policy allows, for the lengths that
// people use.
func admissible(p pin.Policy) []admissibleBody {
	counts := []admissibleBody{}
	for n := p.MinLength; n <= min(p.MaxLength, max(p.MinLength, 12)); n++ {
		counts = append(counts, admissibleBody{n, p.Admissible(n).String()})
	}
	return counts
}

type policyAnswer struct {
	Version int64 `json:"version" doc:"Every PIN remembers the version that accepted it."`
	PolicyFields
	Admissible []admissibleBody `json:"admissible" doc:"How many PINs of digits alone the policy allows, by length, up to 12."`
}

func policyAnswerOf(p tenant.Policy) policyAnswer {
	return policyAnswer{p.Version, policyOut(p.Policy), admissible(p.Policy)}
}

type violationBody struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (a *API) policyOperations(api huma.API) {
	const tag = "PIN policy"
	register(a, api, operation{
		id: "get-policy", summary: "Get the PIN policy", method: http.MethodGet, path: "/v1/policy",
		action: tenant.ReadPolicy, tag: tag,
	}, func(ctx context.Context, _ *struct{}) (*Versioned[policyAnswer], error) {
		p := caller(ctx).Core.Policy
		return versioned(policyAnswerOf(p), p.Version), nil
	})

	register(a, api, operation{
		id: "put-policy", summary: "Change the PIN policy", method: http.MethodPut, path: "/v1/policy",
		action: tenant.WritePolicy, tag: tag,
		about: "It binds every PIN made from now on, however it is made. PINs there are stay as they are: their expiry, too, was fixed when they were made.",
	}, func(ctx context.Context, in *struct {
		IfMatch
		Body policyInput
	}) (*Versioned[policyAnswer], error) {
		c := caller(ctx)
		if err := in.check(c.Core.Policy.Version); err != nil {
			return nil, err
		}
		p, err := in.Body.policy()
		if err != nil {
			return nil, err
		}
		changed, err := a.Tenants.ChangePolicy(ctx, c.Actor, c.Core, p)
		if err != nil {
			return nil, err
		}
		return versioned(policyAnswerOf(changed), changed.Version), nil
	})

	type profileBody struct {
		Name        string           `json:"name"`
		Description string           `json:"description"`
		Policy      PolicyFields     `json:"policy"`
		Admissible  []admissibleBody `json:"admissible"`
	}
	register(a, api, operation{
		id: "list-policy-profiles", summary: "List policies to start from", method: http.MethodGet, path: "/v1/policy/profiles",
		action: tenant.ReadPolicy, tag: tag,
	}, func(ctx context.Context, _ *struct{}) (*Body[List[profileBody]], error) {
		return page(pin.Profiles(), "", func(p pin.Profile) profileBody {
			return profileBody{p.Name, p.Description, policyOut(p.Policy), admissible(p.Policy)}
		}), nil
	})

	type checkBody struct {
		Allowed    bool             `json:"allowed"`
		Violations []violationBody  `json:"violations"`
		Admissible []admissibleBody `json:"admissible,omitempty" doc:"Of the policy that was given."`
	}
	register(a, api, operation{
		id: "check-pin", summary: "Try a PIN", method: http.MethodPost, path: "/v1/policy/check",
		action: tenant.ReadPolicy, tag: tag,
		about: "Tells what a policy has against a PIN; nothing is stored. Without policy it is the tenant's own.",
	}, func(ctx context.Context, in *struct {
		Body struct {
			PIN         pinInput     `json:"pin"`
			Policy      *policyInput `json:"policy,omitempty" doc:"A policy to try, not yet in force."`
			Username    string       `json:"username,omitempty"`
			Mail        string       `json:"mail,omitempty"`
			Phone       string       `json:"phone,omitempty"`
			StaffNumber string       `json:"staffNumber,omitempty"`
		}
	}) (*Body[checkBody], error) {
		core := caller(ctx).Core
		policy := core.Policy.Policy
		if in.Body.Policy != nil {
			var err error
			var vs problem.Violations
			policy, err = in.Body.Policy.policy()
			vs.Under("policy", err)
			if err := vs.Err(); err != nil {
				return nil, err
			}
		}
		about := pin.Context{Username: in.Body.Username, Mail: in.Body.Mail, Phone: in.Body.Phone, StaffNumber: in.Body.StaffNumber}
		if policy.MinLengthByUsers {
			var err error
			if about.Users, err = a.Users.Count(ctx, core.Tenant.ID); err != nil {
				return nil, err
			}
		}
		out := checkBody{Violations: []violationBody{}}
		if in.Body.Policy != nil {
			out.Admissible = admissible(policy)
		}
		for _, v := range problem.Violations(policy.Check(in.Body.PIN.Text, about)) {
			out.Violations = append(out.Violations, violationBody{v.Code, v.Reason})
		}
		out.Allowed = len(out.Violations) == 0
		return answer(out), nil
	})

	type versionBody struct {
		Version int64        `json:"version"`
		Since   time.Time    `json:"since"`
		PINs    int          `json:"pins" doc:"PINs in use that this version accepted."`
		Policy  PolicyFields `json:"policy" doc:"Without the tenant's own blocklist entries."`
	}
	type reportBody struct {
		Users       int           `json:"users"`
		WithoutPIN  int           `json:"withoutPin" doc:"Users without a PIN, or with an expired one."`
		Identifying int           `json:"identifying" doc:"PINs that find their user alone (PIN-only login)."`
		Versions    []versionBody `json:"versions" doc:"The policies there were, oldest first, the last 1,000."`
	}
	register(a, api, operation{
		id: "get-policy-report", summary: "Which policy accepted the PINs in use", method: http.MethodGet, path: "/v1/policy/report",
		action: tenant.WritePolicy, tag: tag,
		about: "A change of policy leaves the PINs there are. This tells how many were accepted by which version. It reads every user.",
	}, func(ctx context.Context, _ *struct{}) (*Body[reportBody], error) {
		id := caller(ctx).Core.Tenant.ID
		versions, err := a.Tenants.PolicyVersions(ctx, id)
		if err != nil {
			return nil, err
		}
		census, err := a.Users.Census(ctx, id)
		if err != nil {
			return nil, err
		}
		out := reportBody{Users: census.Users, WithoutPIN: census.WithoutPIN, Identifying: census.Identifying, Versions: []versionBody{}}
		for _, v := range versions {
			v.BlocklistEntries = nil
			out.Versions = append(out.Versions, versionBody{v.Version, v.Since, census.ByPolicy[v.Version], policyOut(v.Policy.Policy)})
		}
		return answer(out), nil
	})
}
