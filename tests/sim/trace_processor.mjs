// Perfetto's trace processor, as its UI runs it (WebAssembly), for tests.
//   node trace_processor.mjs FOLDER TRACE < queries.json
// FOLDER holds trace_processor.wasm, engine_bundle.node.js and engine.mjs; queries.json is a list of
// SQL texts; prints a list of lists of rows.
import {readFileSync} from 'node:fs';
import {join} from 'node:path';
import {pathToFileURL} from 'node:url';
import vm from 'node:vm';

const [folder, trace] = process.argv.slice(2);

// The bundle expects the scope of a web worker: itself, its address, synchronous downloads.
globalThis.self = globalThis;
globalThis.WorkerGlobalScope = class {};
globalThis.location = {href: pathToFileURL(folder).href + '/'};
globalThis.XMLHttpRequest = class {
  open(method, url) {
    this.name = url.split('/').pop();
  }
  send() {
    this.response = new Uint8Array(readFileSync(join(folder, this.name))).buffer;
  }
};
console.warn = () => {};
// What it says of the memory64 build, which is not there, would go between the rows.
console.log = (...words) => console.error(...words);

vm.runInThisContext(readFileSync(join(folder, 'engine_bundle.node.js'), 'utf8'));
const {EngineBase} = await import(pathToFileURL(join(folder, 'engine.mjs')).href);
const {port1, port2} = new MessageChannel();
// Messages wait in the port until the module has started.
await new Promise((resolve) => setTimeout(resolve, 1000));
globalThis.self.onmessage({data: port1});

class Engine extends EngineBase {
  mode = 'WASM';
  id = 'test';
  constructor() {
    super();
    port2.onmessage = (message) => this.onRpcResponseBytes(message.data);
  }
  rpcSendRequestBytes(bytes) {
    port2.postMessage(bytes);
  }
}

const engine = new Engine();
const bytes = new Uint8Array(readFileSync(trace));
// A message to the engine holds less than 64 MiB.
for (let at = 0; at < bytes.length; at += 1 << 25) {
  await engine.parse(bytes.slice(at, at + (1 << 25)));
}
await engine.notifyEof();
const answers = [];
for (const query of JSON.parse(readFileSync(0, 'utf8'))) {
  const result = await engine.query(query);
  if (result.error()) throw new Error(`${query}: ${result.error()}`);
  const names = result.columns();
  const rows = [];
  for (const it = result.iter({}); it.valid(); it.next()) {
    rows.push(
      names.map((name) => {
        const value = it.get(name);
        return typeof value === 'bigint' ? Number(value) : value;
      }),
    );
  }
  answers.push(rows);
}
process.stdout.write(JSON.stringify(answers), () => process.exit(0));
