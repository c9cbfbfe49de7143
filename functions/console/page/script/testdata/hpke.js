// For tests: what the sealed form does, and the opening that only a bridge does.
import { rules } from "../rules.js";
import { hex, padded, seal, suite, unhex } from "../sealing.js";

// sealPIN seals as the form does, in JSON.
globalThis.sealPIN = async (pin, to, length) => JSON.stringify(await seal(padded(pin, length), to));

globalThis.padded = padded;

// open opens with a private key; everything in hex.
globalThis.open = async ({ key, encapsulated, info, associatedData, ciphertext }) => {
  const s = suite();
  const recipientKey = await s.kem.importKey("raw", unhex(key), false);
  const recipient = await s.createRecipientContext({ recipientKey, enc: unhex(encapsulated), info: unhex(info) });
  return hex(await recipient.open(unhex(ciphertext), unhex(associatedData)));
};

// sealWith seals with an ephemeral key that is given, as RFC 9180's vectors do.
globalThis.sealWith = async ({ ephemeralKey, ephemeralPublicKey, publicKey, info, associatedData, plaintext }) => {
  const s = suite();
  const sender = await s.createSenderContext({
    recipientPublicKey: await s.kem.deserializePublicKey(unhex(publicKey)),
    info: unhex(info),
    ekm: {
      privateKey: await s.kem.importKey("raw", unhex(ephemeralKey), false),
      publicKey: await s.kem.deserializePublicKey(unhex(ephemeralPublicKey)),
    },
  });
  return hex(sender.enc) + " " + hex(await sender.seal(unhex(plaintext), unhex(associatedData)));
};

// broken returns the rules, of those given, that each PIN breaks.
globalThis.broken = (pins, asked) => pins.map((pin) => asked.filter(([rule, value]) => !rules[rule](pin, value)).map(([rule]) => rule));
