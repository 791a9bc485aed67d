// What two readers of the Trace Event Format make of one file, as JSON: the engine of Chrome's performance panel, and TraceBench's model.
//
//     node scripts/trace_readers.mjs TRACE.json NODE_MODULES

import fs from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [file, modules] = process.argv.slice(2);
const events = JSON.parse(fs.readFileSync(file)).traceEvents;

const engine = await import(pathToFileURL(`${modules}/@paulirish/trace_engine/models/trace/trace.js`));
engine.Helpers.SyntheticEvents.SyntheticEventsManager.createAndActivate(events);
const halves = events.filter((event) => event.ph === "b" || event.ph === "e");
const slices = engine.Helpers.Trace.createMatchedSortedSyntheticEvents(halves).map((slice) => ({
  name: slice.name,
  pid: slice.pid,
  begin_us: slice.ts,
  lasts_us: slice.dur,
}));
const whole = engine.TraceModel.Model.createWithAllHandlers();
await whole.parse(events, {});

const { buildModel } = createRequire(import.meta.url)(`${modules}/@tracerbench/trace-model`);
const model = buildModel(events);

console.log(
  JSON.stringify({
    slices,
    is_parsed: Boolean(whole.parsedTrace(0)),
    first_us: model.start,
    last_us: model.end,
    processes: model.processes.map((one) => ({ id: one.id, name: one.name, events: one.events.length })),
  }),
);
