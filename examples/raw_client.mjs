// The same as raw_client.py, in JavaScript: the packages `zeromq` and `@msgpack/msgpack`, and nothing of ours.
//
//     cd examples && npm install && node raw_client.mjs [MODEL] [PROMPT]
//
// docs/internals/messages.md describes every message.

import { randomBytes } from "node:crypto";
import { tmpdir } from "node:os";
import { decode, encode } from "@msgpack/msgpack";
import { Dealer } from "zeromq";

const VERSION = 1;
const WINDOW = 64;
const WAIT_MS = 3000;
const PATIENCE = 10;

function endpoint() {
  const { ERLLAMA_ENDPOINT, ERLLAMA_RUN, XDG_RUNTIME_DIR } = process.env;
  if (ERLLAMA_ENDPOINT) return ERLLAMA_ENDPOINT;
  const standard = XDG_RUNTIME_DIR ? `${XDG_RUNTIME_DIR}/erllama` : `${tmpdir()}/erllama-${process.geteuid()}`;
  return `ipc://${ERLLAMA_RUN ?? standard}/clients.sock`;
}

class RawClient {
  constructor(address) {
    const routingId = `\x01${randomBytes(16).toString("hex")}`;
    this.socket = new Dealer({ routingId, linger: 500, receiveTimeout: WAIT_MS });
    this.socket.connect(address);
  }

  // One message: an envelope of six, and a map.
  async send(kind, ref, model, body = {}) {
    await this.socket.send([encode([VERSION, kind, ref, model, 0, new Uint8Array()]), encode(body)]);
  }

  // The next message of `ref`; undefined when none came in time.
  async receive(ref) {
    for (;;) {
      let frames;
      try {
        frames = await this.socket.receive();
      } catch (error) {
        if (error.code === "EAGAIN") return undefined;
        throw error;
      }
      const [, kind, found] = decode(frames[0]);
      if (found === ref) return { kind, body: frames[1].length ? decode(frames[1]) : {} };
    }
  }

  async call(kind, model = "", body = {}) {
    const ref = `${model || "@host"}/${randomBytes(16).toString("hex")}`;
    await this.send(kind, ref, model, body);
    for (let silence = 0; silence < PATIENCE; silence++) {
      const message = await this.receive(ref);
      if (message) return result(message);
    }
    throw new Error(`no answer to ${kind}; is a host running?`);
  }

  // Pieces of text of one answer, then the body of `done`.
  async *stream(model, text, maxTokens) {
    const ref = `${model}/${randomBytes(16).toString("hex")}`;
    await this.send("infer", ref, model, { text, max_tokens: maxTokens, credit: WINDOW });
    let index = 0;
    for (let silence = 0; silence < PATIENCE; ) {
      const message = await this.receive(ref);
      if (!message) {
        silence++;
        await this.send("resume", ref, model, { next_index: index }); // also a sign of life; what was lost comes again
        continue;
      }
      silence = 0;
      const { kind, body } = message;
      if (kind === "tokens" && body.first_index === index) {
        const count = (body.ids?.length ?? 0) / 4;
        index += count;
        yield textOf(body);
        await this.send("credit", ref, model, { tokens: count }); // read: the worker may send as many more
      } else if (kind === "done" && (body.generated ?? 0) > index) {
        await this.send("resume", ref, model, { next_index: index }); // messages were lost before it
      } else if (kind === "done" || kind === "error") {
        yield textOf(result(message)); // what was held back until the end
        yield body;
        return;
      }
    }
    throw new Error("the model does not answer");
  }
}

function result({ kind, body }) {
  if (kind === "error") throw new Error(`${body.code}: ${body.message}`);
  return body;
}

// The text of a message, of all channels.
function textOf(body) {
  return (body.parts ?? []).map(([, part]) => part).join("");
}

// Token ids travel as little-endian u32.
function unpack(ids) {
  const view = new DataView(ids.buffer, ids.byteOffset, ids.byteLength);
  return Array.from({ length: ids.byteLength / 4 }, (_, i) => view.getUint32(4 * i, true));
}

const [model = "tiny", prompt = "Once upon a time"] = process.argv.slice(2);
const client = new RawClient(endpoint());
const hello = await client.call("hello");
console.log(`host ${hello.version}, protocol ${hello.protocol}`);
console.log("tokens:", unpack((await client.call("tokenize", model, { text: prompt })).tokens).join(" "));
for await (const item of client.stream(model, prompt, 24)) {
  if (typeof item === "string") process.stdout.write(item);
  else console.log(`\n${item.finish_reason}, ${item.generated ?? 0} tokens`);
}
client.socket.close();
