// What is known of the cluster, kept up to date: the records of all nodes as lines of JSON, and the pictures that those
// records say have changed. Everything kept is bounded. When this node no longer answers, `contact` says since when.

import { get, segment, stream } from '/parts.js';

const RECORDS = 3000;       // about the size of what the node itself keeps
const FRAMES = 900;         // the recorded window of the time scrubber: half an hour at one every two seconds
const WATCHED = 24;         // nodes whose own view is asked for; a larger matrix cannot be read anyway
const BEAT = 2000;
const PATIENCE = 3000;

export const state = {
  status: null, members: null, actors: null, views: new Map(), statuses: new Map(), records: [], frames: [], rates: [], waits: [], runs: [],
  contact: { live: false, since: Date.now(), stream: false }, at: null,
};

const listeners = new Set();
export const changed = (what) => listeners.forEach((tell) => tell(what));
export const onChange = (tell) => listeners.add(tell);

// The picture of the chosen moment: now, or a recorded one.
export const picture = () => (state.at === null ? state : state.frames[state.at] ?? state);
export const master = (p = picture()) => p.members?.members.find((m) => m.master) ?? null;
export const until = () => (state.at === null ? Infinity : state.frames[state.at]?.time ?? Infinity);

const seen = new Set();
let newest = '';
let asked = new Map();

function later(name, after, ask) {
  if (asked.has(name)) return;
  asked.set(name, setTimeout(async () => {
    asked.delete(name);
    try { await ask(); changed(name); } catch { /* The beat says when contact is lost. */ }
  }, after));
}

async function lookAtMembers() { state.members = await get('/v1/members', PATIENCE); record(); }
// Apart from the members: counts are asked of the master, who may be the one that is gone.
async function lookAtStatus() { state.status = await get('/v1/status', PATIENCE); record(); }
async function lookAtActors() { state.actors = await get('/v1/actors', 8000); record(); }

function take(fields) {
  const key = `${fields.node_id}:${fields.seq}`;
  if (!fields.notice) {
    if (seen.has(key)) return;
    seen.add(key);
    if (seen.size > 2 * RECORDS) for (const old of [...seen].slice(0, RECORDS)) seen.delete(old);
  }
  state.records.push(fields);
  if (state.records.length > RECORDS) state.records.splice(0, state.records.length - RECORDS);
  time(fields);
  const kind = String(fields.event);
  if (/^(peer|master|node|session|registry)\./.test(kind)) {
    later('members', 60, lookAtMembers);
    later('status', 60, lookAtStatus);
  }
  if (/^(actor|peer|node)\./.test(kind)) later('actors', 60, lookAtActors);
  later('records', 100, async () => {});
}

const created = new Map();  // when tasks that wait were made, by id

// What a task's records say of how long it waited and ran.
function time(fields) {
  if (fields.event === 'task.created') {
    created.set(fields.task, Date.parse(fields.ts));
    if (created.size > RECORDS) created.delete(created.keys().next().value);
  }
  if (fields.event === 'task.started' && created.has(fields.task)) {
    keep(state.waits, Math.max(0, Date.parse(fields.ts) - created.get(fields.task)));
    created.delete(fields.task);
  }
  if (fields.event === 'task.finished' && Number.isFinite(fields.duration_ms)) keep(state.runs, fields.duration_ms);
}

function keep(points, point) {
  points.push(point);
  if (points.length > 200) points.shift();
}

function heard(fields) {
  if (fields.hlc > newest) newest = fields.hlc;
  take(fields.event === 'lagged' ? { ...fields, notice: true, ts: new Date().toISOString(), level: 'warn', msg: 'records were missed' } : fields);
}

function contact(stream) {
  state.contact.stream = stream;
  changed('contact');
}

// A stream that ends, or is refused, is opened again; it goes on after the newest record.
async function follow() {
  const after = newest ? `&after=${segment(newest)}` : '&limit=500';
  try { await stream(`/v1/logs?node=*${after}`, () => contact(true), heard); } catch { /* The next try says more. */ }
  contact(false);
  setTimeout(follow, 2000);
}

let before = null;
function measure() {
  const finished = [...state.statuses.values()].reduce((sum, s) => sum + (s.worker?.finished ?? 0), 0);
  const now = performance.now();
  // Workers that came or went make the sum jump: such a step is no rate.
  const nodes = [...state.statuses.keys()].sort().join();
  if (before && before.nodes === nodes && finished >= before.finished) state.rates.push((finished - before.finished) / ((now - before.now) / 1000));
  if (state.rates.length > 120) state.rates.shift();
  before = { finished, now, nodes };
}

function record() {
  if (!state.members) return;
  state.frames.push({ time: Date.now(), status: state.status, members: state.members, actors: state.actors, views: new Map(state.views), statuses: new Map(state.statuses) });
  if (state.frames.length > FRAMES) {
    state.frames.shift();
    if (state.at !== null) state.at = Math.max(0, state.at - 1);
  }
}

async function each(names, path, into) {
  const answers = await Promise.allSettled(names.map((name) => get(`${path}?node=${segment(name)}`, PATIENCE)));
  into.clear();
  // Who did not answer is left out: nothing old stands in as new.
  answers.forEach((answer, i) => { if (answer.status === 'fulfilled') into.set(names[i], answer.value); });
}

async function beat() {
  try {
    [state.status, state.members] = await Promise.all([get('/v1/status', PATIENCE), get('/v1/members', PATIENCE)]);
    if (!state.contact.live) {
      Object.assign(state.contact, { live: true, since: Date.now() });
      later('actors', 0, lookAtActors);
    }
    if (!document.hidden) {
      const names = state.members.members.slice(0, WATCHED).map((m) => m.name);
      await Promise.all([each(names, '/v1/members', state.views), each(names, '/v1/status', state.statuses)]);
      measure();
      later('actors', 0, lookAtActors);
    }
    state.contact.heard = Date.now();
    record();
  } catch {
    if (state.contact.live) Object.assign(state.contact, { live: false, since: Date.now() });
  }
  changed('beat');
  changed('contact');
  setTimeout(beat, BEAT);
}

export function start() { follow(); beat(); }
