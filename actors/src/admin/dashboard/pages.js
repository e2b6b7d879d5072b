// Actors, Events, Logs and Registry.

import { act, api, clock, get, grade, h, row, segment, short, span, table } from '/parts.js';
import { picture, state, until } from '/live.js';

export function actors(root) {
  const nodes = picture().actors?.nodes;
  if (!nodes) return root.replaceChildren(h('p', {}, 'Nothing is known yet.'));
  const kill = (node, actor, how) => act(`${how} the ${actor} actor of ${node}?`, () => api('POST', `/v1/actors/${segment(actor)}/kill?node=${segment(node)}`, { how }));
  root.replaceChildren(...nodes.flatMap((n) => [
    h('h2', {}, n.node, n.state ? h('span', { class: 'bad' }, ` ${n.state}: ${n.error}`) : ''),
    n.actors.length ? table(['actor', 'state', 'restarts', 'mailbox', 'handled', 'up', 'last failure', ''], n.actors.map((a) => row(
      a.name, h('td', { class: grade(a.state) }, a.state), String(a.restarts), a.mailbox === null ? '–' : String(a.mailbox), String(a.handled), span(a.uptime_s),
      a.last_failure ? h('td', {}, h('details', {}, h('summary', {}, short(a.last_failure.split('\n')[0])), h('pre', {}, a.last_failure))) : '–',
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

const shelf = { keys: null, error: null, at: 0, root: null, marks: new Map() };

export async function registry(root) {
  shelf.root = root;
  try { shelf.keys = (await get('/v1/registry?prefix=', 5000)).keys; shelf.error = null; } catch (error) { shelf.error = error.message; }
  shelf.at = shelf.error ? shelf.at : Date.now();
  drawRegistry(root);
}

export function drawRegistry(root) {
  if (!shelf.keys) return root.replaceChildren(h('p', { class: 'bad' }, shelf.error ?? 'Reading …'));
  const passed = (Date.now() - shelf.at) / 1000;
  const groups = new Map();
  for (const key of shelf.keys) {
    const folder = key.key.slice(0, key.key.lastIndexOf('/') + 1);
    groups.set(folder, [...(groups.get(folder) ?? []), key]);
  }
  const open = new Set([...root.querySelectorAll('details.folder:not([open])')].map((d) => d.dataset.folder));
  const folders = [...groups].map(([folder, keys]) => {
    const rows = keys.map((k) => row(
      h('td', { class: 'key' }, k.key.slice(folder.length), shelf.marks.get(k.key) === k.mod_revision ? '' : h('b', { class: 'ok' }, ' changed')), k.owner,
      k.ttl_s === null ? 'no lease' : h('td', { class: k.ttl_s - passed < 10 ? 'bad' : '' }, span(Math.max(0, k.ttl_s - passed))), k.lease ? k.lease.toString(16) : '–',
      String(k.create_revision), String(k.mod_revision), k.stale ? h('td', { class: 'bad' }, k.stale) : 'no', h('td', { class: 'key' }, h('details', {}, h('summary', {}, short(k.value)), h('pre', {}, JSON.stringify(k.value, null, 1))))));
    const box = h('details', { class: 'folder', open: !open.has(folder) }, h('summary', {}, `${folder} (${keys.length})`), table(['key', 'owner', 'ttl', 'lease', 'created', 'changed', 'stale', 'value'], rows));
    box.dataset.folder = folder;
    return box;
  });
  shelf.marks = new Map(shelf.keys.map((k) => [k.key, k.mod_revision]));
  const note = shelf.error ? h('p', { class: 'bad' }, `The registry is away (${shelf.error}); this is from ${clock(shelf.at)}.`) : h('p', { class: 'soft' }, `Read at ${clock(shelf.at)}. Nothing can be changed here.`);
  if (root.contains(document.activeElement) && document.activeElement.tagName === 'SUMMARY') return undefined;
  return root.replaceChildren(note, ...folders);
}
