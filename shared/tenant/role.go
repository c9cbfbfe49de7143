package tenant

// Role is what an API key or token may be used for, or a person who signs in.
type Role string

// The roles. RoleSelf is a person acting for themselves with a token; it
// reaches its own user only.
const (
	RolePlatform Role = "platform"
	RoleAdmin    Role = "admin"
	RoleOperator Role = "operator"
	RoleHelpdesk Role = "helpdesk"
	RoleKiosk    Role = "kiosk"
	RoleEvents   Role = "events"
	RoleSelf     Role = "self"
	RoleAuditor  Role = "auditor" // a person who reads everything and changes nothing
)

// KeyRoles are the roles that a tenant's API keys can have.
func KeyRoles() []Role {
	return []Role{RoleAdmin, RoleOperator, RoleHelpdesk, RoleKiosk, RoleEvents}
}

// PersonRoles are the roles that people who sign in can have. A person may have several.
func PersonRoles() []Role { return []Role{RoleAdmin, RoleOperator, RoleHelpdesk, RoleAuditor} }

// Action is one thing that a caller may or may not do.
type Action string

// The actions. Every operation of the API names one.
const (
	ManageTenants  Action = "tenants.manage"
	ReadCaller     Action = "caller.read"
	ReadSettings   Action = "settings.read"
	WriteSettings  Action = "settings.write"
	ReadPolicy     Action = "policy.read"
	WritePolicy    Action = "policy.write"
	ManageKeys     Action = "keys.manage"
	ManagePeople   Action = "people.manage"
	MintTokens     Action = "tokens.mint"
	ListUsers      Action = "users.list"
	ReadUser       Action = "users.read"
	CreateUser     Action = "users.create"
	UpdateUser     Action = "users.update"
	DeleteUser     Action = "users.delete"
	ClearMail      Action = "users.clearMail" // let mails go again to an address that did not work
	ReadPIN        Action = "pin.read"
	SetPIN         Action = "pin.set"
	GeneratePIN    Action = "pin.generate"
	IssuePIN       Action = "pin.issue"
	RequireChange  Action = "pin.requireChange"
	BulkPINs       Action = "pin.bulk"
	DeletePIN      Action = "pin.delete"
	UnlockPIN      Action = "pin.unlock"
	VerifyPIN      Action = "pin.verify"
	IdentifyPIN    Action = "pin.identify"
	ReadMessaging  Action = "messaging.read"
	WriteMessaging Action = "messaging.write"
	ReadAudit      Action = "audit.read"

	ReadBridges        Action = "bridges.read"
	ManageBridges      Action = "bridges.manage"
	ReadCredentials    Action = "credentials.read"
	WriteCredentials   Action = "credentials.write"
	ReadCardTemplates  Action = "cardTemplates.read"
	WriteCardTemplates Action = "cardTemplates.write"
	ReadUnblock        Action = "unblock.read"
	ListUnblocks       Action = "unblock.list"
	StartUnblock       Action = "unblock.start"
	CancelUnblock      Action = "unblock.cancel"
	AnswerOffline      Action = "offline.answer"
	TellPUK            Action = "offline.tellPUK"
	RunSanityCheck     Action = "sanityCheck.run"

	SendEvents       Action = "events.send"
	ReadEvents       Action = "events.read"
	ReadRules        Action = "rules.read"
	WriteRules       Action = "rules.write"
	ReadDeliveries   Action = "deliveries.read" // and the endpoints of webhooks
	ManageDeliveries Action = "deliveries.manage"
)

// Grant is how far a role may go with an action.
type Grant byte

// The grants.
const (
	No  Grant = iota
	Own       // on the caller's own user only
	Yes
)

// MayAny decides what somebody who has several roles may do: the most that one of them may.
func MayAny(roles []Role, a Action) Grant {
	most := No
	for _, r := range roles {
		most = max(most, May(r, a))
	}
	return most
}

// May decides what a role may do; nothing else does.
func May(r Role, a Action) Grant {
	switch r {
	case RolePlatform:
		switch a {
		case ManageTenants, ReadCaller:
			return Yes
		}
	case RoleAdmin:
		if a != ManageTenants {
			return Yes
		}
	case RoleOperator:
		switch a {
		case ReadCaller, ReadSettings, ReadPolicy, ListUsers, ReadUser, CreateUser, UpdateUser, ClearMail,
			ReadPIN, SetPIN, GeneratePIN, IssuePIN, RequireChange, DeletePIN, UnlockPIN,
			ReadBridges, ReadCredentials, WriteCredentials, ReadCardTemplates,
			ReadUnblock, ListUnblocks, StartUnblock, CancelUnblock, AnswerOffline, TellPUK,
			ReadEvents, ReadRules:
			return Yes
		}
	case RoleHelpdesk:
		// Never a PIN: a help desk must be able to help without learning one.
		switch a {
		case ReadCaller, ReadPolicy, ListUsers, ReadUser, ReadPIN, IssuePIN, UnlockPIN,
			ReadBridges, ReadCredentials, ReadCardTemplates, ReadUnblock, ListUnblocks, AnswerOffline:
			return Yes
		}
	case RoleKiosk:
		switch a {
		case ReadCaller, VerifyPIN, IdentifyPIN, ReadUnblock, StartUnblock, CancelUnblock:
			return Yes
		}
	case RoleEvents:
		switch a {
		case ReadCaller, SendEvents:
			return Yes
		}
	case RoleAuditor:
		switch a {
		case ReadCaller, ReadSettings, ReadPolicy, ListUsers, ReadUser, ReadPIN, ReadMessaging, ReadAudit,
			ReadBridges, ReadCredentials, ReadCardTemplates, ReadUnblock, ListUnblocks,
			ReadEvents, ReadRules, ReadDeliveries:
			return Yes
		}
	case RoleSelf:
		switch a {
		case ReadCaller, ReadPolicy:
			return Yes
		case ReadUser, UpdateUser, ReadPIN, SetPIN, GeneratePIN, IssuePIN:
			return Own
		}
	}
	return No
}
