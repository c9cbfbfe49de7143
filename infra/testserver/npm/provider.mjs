// An OpenID Connect provider (npm oidc-provider) whose accounts are what they say: whoever
// signs in as "ada" is the account of that name in ACCOUNTS, without a password.
import { createServer } from "node:http";
import Provider from "oidc-provider";

const { HOST, PORT, CLIENTS, ACCOUNTS } = process.env;
const accounts = JSON.parse(ACCOUNTS);

const provider = new Provider(`http://${HOST}:${PORT}`, {
  clients: JSON.parse(CLIENTS),
  claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["name"], groups: ["groups"] },
  scopes: ["openid", "email", "profile", "groups"],
  findAccount: (_, id) => accounts[id] && { accountId: id, claims: () => ({ sub: id, ...accounts[id] }) },
  features: { devInteractions: { enabled: false } },
  interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
  cookies: { keys: ["a key of the test's"] },
  pkce: { required: () => true },
  ttl: { AccessToken: 600, AuthorizationCode: 60, Grant: 600, IdToken: 600, Interaction: 600, Session: 600 },
});

const escape = (s) => s.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

async function interact(req, res) {
  const { uid, prompt, params, session, grantId } = await provider.interactionDetails(req, res);
  if (req.method === "GET" && prompt.name === "login") {
    res.setHeader("Content-Type", "text/html; charset=utf-8");
    return res.end(`<!doctype html><html lang="en"><title>Provider</title><h1>Sign in at the provider</h1>
<form method="post"><label>Account <input name="account"></label><button>Sign in</button><button name="no" value="1">Cancel</button></form>`);
  }
  const form = new URLSearchParams();
  if (req.method === "POST") for await (const chunk of req) for (const [k, v] of new URLSearchParams(String(chunk))) form.set(k, v);
  if (form.get("no"))
    return provider.interactionFinished(req, res, { error: "access_denied", error_description: "not today" });
  if (prompt.name === "login") {
    const account = form.get("account");
    if (!accounts[account]) { res.statusCode = 400; return res.end(`no account ${escape(String(account))} for ${uid}`); }
    return provider.interactionFinished(req, res, { login: { accountId: account } }, { mergeWithLastSubmission: false });
  }
  const grant = grantId ? await provider.Grant.find(grantId) : new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
  grant.addOIDCScope(params.scope);
  return provider.interactionFinished(req, res, { consent: { grantId: await grant.save() } }, { mergeWithLastSubmission: true });
}

const callback = provider.callback();
createServer((req, res) => {
  if (!req.url.startsWith("/interaction/")) return callback(req, res);
  interact(req, res).catch((err) => { res.statusCode = 500; res.end(String(err)); });
}).listen(Number(PORT), HOST);
