// Actors, Events, Logs and Registry.

import { act, api, clock, get, grade, h, row, segment, short, span, stream, table, toast } from '/parts.js';
import { picture, state, until } from '/live.js';

// Failures that are open, with the calls that led there, by node and actor.
const failures = new Map();

async function unfold(root, node, actor) {
  const key = `${node}/${actor}`;
  if (failures.delete(key)) return actors(root);
  failures.set(key, 'Reading …');
  actors(root);
  try {
    const answer = await get(`/v1/actors/${segment(actor)}/failure?node=${segment(node)}`);
    failures.set(key, answer.trace ?? 'It did not panic: there are no calls to show.');
  } catch (error) { failures.set(key, error.message); }
  return actors(root);
}

function failed(root, n, a) {
  if (!a.last_failure) return '–';
  const open = failures.get(`${n.node}/${a.name}`);
  return h('td', {}, h('button', { class: 'inline', 'aria-expanded': String(open !== undefined), onclick: () => unfold(root, n.node, a.name) }, short(a.last_failure)), open === undefined ? '' : h('pre', { class: 'trace' }, open));
}

export function actors(root) {
  const nodes = picture().actors?.nodes;
  if (!nodes) return root.replaceChildren(h('p', {}, 'Nothing is known yet.'));
  const kill = (node, actor, how) => act(`${how} the ${actor} actor of ${node}?`, () => api('POST', `/v1/actors/${segment(actor)}/kill?node=${segment(node)}`, { how }));
  root.replaceChildren(...nodes.flatMap((n) => [
    h('h2', {}, n.node, n.state ? h('span', { class: 'bad' }, ` ${n.state}: ${n.error}`) : ''),
    n.actors.length ? table(['actor', 'state', 'restarts', 'mailbox', 'handled', 'up', 'last failure', ''], n.actors.map((a) => row(
      a.name, h('td', { class: grade(a.state) }, a.state), String(a.restarts), a.mailbox === null ? '–' : String(a.mailbox), String(a.handled), span(a.uptime_s),
      failed(root, n, a),
      h('td', {}, h('div', { class: 'row' }, ['panic', 'stop', 'hang'].map((how) => h('button', { class: 'danger', onclick: () => kill(n.node, a.name, how), 'aria-label': `${how} ${a.name} of ${n.node}` }, how))))))) : '',
  ]));
  return undefined;
}

const LEVELS = ['error', 'warn', 'info', 'debug', 'trace'];
const view = { text: '', level: '', node: '', paused: null };

export function only(text) { view.text = text; }

// Named records, or all of them; newest first, so that what comes is seen without scrolling.
export function records(root, named) {
  const kept = view.paused ?? state.records;
  const before = until();
  const fits = (r) => (!named || (r.event && r.event !== 'log')) && (!view.level || LEVELS.indexOf(r.level) <= LEVELS.indexOf(view.level))
    && (!view.node || r.node === view.node) && (!view.text || JSON.stringify(r).includes(view.text)) && (before === Infinity || Date.parse(r.ts) <= before);
  const shown = kept.filter(fits).slice(-400).reverse();
  const lines = h('div', { class: 'log', id: 'lines' }, shown.map(line));
  const old = root.querySelector('#lines');
  if (old) return old.replaceWith(lines);
  const again = () => { root.replaceChildren(); records(root, named); };
  const names = [...new Set(state.records.map((r) => r.node).filter(Boolean))];
  root.replaceChildren(h('div', { class: 'row' },
    h('input', { type: 'text', value: view.text, placeholder: 'a node, task, epoch, word', 'aria-label': 'filter', oninput: (e) => { view.text = e.target.value; records(root, named); } }),
    h('select', { 'aria-label': 'least level', onchange: (e) => { view.level = e.target.value; again(); } }, ['', ...LEVELS].map((l) => h('option', { value: l, selected: l === view.level }, l || 'all levels'))),
    h('select', { 'aria-label': 'node', onchange: (e) => { view.node = e.target.value; again(); } }, ['', ...names].map((n) => h('option', { value: n, selected: n === view.node }, n || 'all nodes'))),
    h('button', { 'aria-pressed': String(view.paused !== null), onclick: () => { view.paused = view.paused ? null : [...state.records]; again(); } }, view.paused ? 'Go on' : 'Pause'),
    view.paused ? h('span', { class: 'warn' }, 'paused: newer records are not shown') : ''), lines);
  return undefined;
}

const PLAIN = new Set(['ts', 'level', 'event', 'node', 'node_id', 'actor', 'msg', 'seq', 'hlc', 'notice']);

function line(r) {
  const filter = (text) => h('button', { class: 'inline', onclick: () => { view.text = text; const root = document.getElementById('page'); const named = location.hash.startsWith('#events'); root.replaceChildren(); records(root, named); } }, text);
  const more = Object.entries(r).filter(([key]) => !PLAIN.has(key)).flatMap(([key, value]) => [` ${key}=`, ['task', 'epoch', 'peer', 'executor'].includes(key) ? filter(String(value)) : short(value)]);
  const tone = { error: 'bad', warn: 'warn' }[r.level] ?? '';
  return h('div', {}, h('span', { class: 'soft' }, `${(r.ts ?? '').slice(11, 23)} `), h('span', { class: tone }, `${(r.level ?? '').padEnd(5)} `), r.node ? filter(r.node) : '', ` ${r.actor ?? ''} `, h('b', {}, r.event ?? ''), ` ${r.msg ?? ''}`, more);
}

const MARKED = 10000;       // ms that a change stays marked
const PAUSE = 1000;         // ms between two looks at the keys
const OLD = 5000;           // ms after which they are looked at again whether or not something changed: leases are renewed silently
const shelf = { keys: null, editable: false, error: null, at: 0, marks: new Map(), edited: null, source: null, due: false, reading: false };

// The keys, read again whenever the registry tells of a change.
export function registry(root) {
  if (!shelf.source) watch(root);
  if (!shelf.keys || Date.now() - shelf.at > OLD) read(root);
  return drawRegistry(root);
}

// It ends with the node's own contact to the registry; the next visit or beat opens it again.
async function watch(root) {
  const source = new AbortController();
  shelf.source = source;
  const again = () => { if (location.hash.startsWith('#registry')) read(root); else source.abort(); };
  try { await stream('/v1/registry/watch?prefix=', () => {}, again, { signal: source.signal }); } catch { /* See above. */ }
  shelf.source = null;
}

// What is new or changed since the last look is marked for a while.
function mark(keys) {
  const known = shelf.marks;
  shelf.marks = new Map(keys.map((k) => {
    const before = known.get(k.key);
    if (before?.revision === k.mod_revision) return [k.key, before];
    return [k.key, { revision: k.mod_revision, until: shelf.keys ? Date.now() + MARKED : 0 }];
  }));
}

// One look at a time and one a second, however many changes come.
async function read(root) {
  shelf.due = true;
  if (shelf.reading) return;
  shelf.reading = true;
  while (shelf.due) {
    shelf.due = false;
    try {
      const view = await get('/v1/registry?prefix=', 5000);
      mark(view.keys);
      Object.assign(shelf, { keys: view.keys, editable: view.editable, error: null, at: Date.now() });
    } catch (error) { shelf.error = error.message; }
    if (location.hash.startsWith('#registry')) drawRegistry(root);
    await new Promise((resolve) => { setTimeout(resolve, PAUSE); });
  }
  shelf.reading = false;
}

const path = (key, seen) => `/v1/registry?key=${segment(key)}&seen=${seen}`;

async function save(root, k, text) {
  let value;
  try { value = JSON.parse(text); } catch { return toast('this is not JSON; a text needs quotes'); }
  if (await act(`Change ${k.key}? Nodes act on it at once.`, () => api('PUT', path(k.key, shelf.edited.seen), value))) shelf.edited = null;
  return read(root);
}

function edits(root, k) {
  if (!shelf.editable) return [];
  const edit = () => { shelf.edited = { key: k.key, seen: k.mod_revision, text: JSON.stringify(k.value, null, 1) }; drawRegistry(root); };
  const remove = async () => { await act(`Delete ${k.key}? Nodes act on it at once.`, () => api('DELETE', path(k.key, k.mod_revision))); read(root); };
  if (shelf.edited?.key !== k.key) {
    return [h('div', { class: 'row' }, k.binary ? '' : h('button', { onclick: edit, 'aria-label': `edit ${k.key}` }, 'Edit'), h('button', { class: 'danger', onclick: remove, 'aria-label': `delete ${k.key}` }, 'Delete'))];
  }
  const text = h('textarea', { rows: '6', cols: '40', 'aria-label': `value of ${k.key}`, oninput: (e) => { shelf.edited.text = e.target.value; } }, shelf.edited.text);
  return [text, h('div', { class: 'row' }, h('button', { class: 'danger', onclick: () => save(root, k, shelf.edited.text) }, 'Save'), h('button', { onclick: () => { shelf.edited = null; drawRegistry(root); } }, 'Leave it'))];
}

function drawRegistry(root) {
  if (!shelf.keys) return root.replaceChildren(h('p', { class: shelf.error ? 'bad' : '' }, shelf.error ?? 'Reading …'));
  if (root.contains(document.activeElement) && /^(SUMMARY|TEXTAREA)$/.test(document.activeElement.tagName)) return undefined;
  const passed = (Date.now() - shelf.at) / 1000;
  const groups = new Map();
  for (const key of shelf.keys) {
    const folder = key.key.slice(0, key.key.lastIndexOf('/') + 1);
    groups.set(folder, [...(groups.get(folder) ?? []), key]);
  }
  const shut = new Set([...root.querySelectorAll('details.folder:not([open])')].map((d) => d.dataset.folder));
  const shown = new Set([...root.querySelectorAll('details.value[open]')].map((d) => d.dataset.key));
  const folders = [...groups].map(([folder, keys]) => {
    const rows = keys.map((k) => {
      const value = h('details', { class: 'value', open: shown.has(k.key) }, h('summary', {}, short(k.value)), h('pre', {}, JSON.stringify(k.value, null, 1)));
      value.dataset.key = k.key;
      const marked = shelf.marks.get(k.key).until > Date.now();
      return row(h('td', { class: 'key' }, k.key.slice(folder.length), marked ? h('b', { class: 'ok' }, ' changed') : ''), k.owner,
        k.ttl_s === null ? 'no lease' : h('td', { class: k.ttl_s - passed < 10 ? 'bad' : '' }, span(Math.max(0, k.ttl_s - passed))), k.lease ? k.lease.toString(16) : '–',
        String(k.create_revision), String(k.mod_revision), k.stale ? h('td', { class: 'bad' }, k.stale) : 'no', h('td', { class: 'key' }, value, edits(root, k)));
    });
    const box = h('details', { class: 'folder', open: !shut.has(folder) }, h('summary', {}, `${folder} (${keys.length})`), table(['key', 'owner', 'ttl', 'lease', 'created', 'changed', 'stale', 'value'], rows));
    box.dataset.folder = folder;
    return box;
  });
  const may = shelf.editable ? 'Keys can be changed here (admin.edit_registry is on).' : 'Nothing can be changed here (admin.edit_registry is off).';
  const note = shelf.error ? h('p', { class: 'bad' }, `The registry is away (${shelf.error}); this is from ${clock(shelf.at)}.`) : h('p', { class: 'soft' }, `As of ${clock(shelf.at)}; changes show as they come. ${may}`);
  return root.replaceChildren(note, ...folders);
}
