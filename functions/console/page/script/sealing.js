// Seals a PIN as SealedPIN of shared/relay says.
import { Aes128Gcm, CipherSuite, DhkemX25519HkdfSha256, HkdfSha256 } from "@hpke/core";

const utf8 = (text) => new TextEncoder().encode(text);

export const hex = (buffer) => Array.from(new Uint8Array(buffer), (b) => b.toString(16).padStart(2, "0")).join("");

export const unhex = (text) => Uint8Array.from(text.match(/../g) ?? [], (pair) => parseInt(pair, 16));

export const suite = () =>
  new CipherSuite({ kem: new DhkemX25519HkdfSha256(), kdf: new HkdfSha256(), aead: new Aes128Gcm() });

// padded returns the PIN's length in bytes, the PIN and zeros, or null if there is none
// or it does not fit.
export function padded(pin, length) {
  const bytes = utf8(pin);
  const fits = bytes.length > 0 && bytes.length < length;
  const plain = fits ? new Uint8Array(length) : null;
  plain?.set([bytes.length, ...bytes]);
  bytes.fill(0);
  return plain;
}

// seal seals to what the API's next.seal has: publicKey in hex, info, associatedData.
export async function seal(plain, { publicKey, info, associatedData }) {
  const s = suite();
  const recipientPublicKey = await s.kem.deserializePublicKey(unhex(publicKey));
  const sender = await s.createSenderContext({ recipientPublicKey, info: utf8(info) });
  const ciphertext = await sender.seal(plain, utf8(associatedData));
  return { encapsulated: hex(sender.enc), ciphertext: hex(ciphertext) };
}

// lacking returns why this browser cannot seal: "insecure" where the page did not come
// over TLS or from this machine, "outdated" where it has no X25519 (Chrome and Edge have
// it from 133, Firefox from 130, Safari from 17), or "".
export async function lacking() {
  if (!globalThis.crypto?.subtle) return "insecure";
  try {
    await crypto.subtle.generateKey({ name: "X25519" }, false, ["deriveBits"]);
    return "";
  } catch {
    return "outdated";
  }
}
