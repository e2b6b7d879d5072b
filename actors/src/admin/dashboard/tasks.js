// Tasks: lanes per worker, the list with its filters, one task with its history, submitting, cancelling, retrying.

import { act, api, get, grade, h, row, segment, short, svg, table, toast } from '/parts.js';
import { picture, state, until } from '/live.js';

const STATES = ['', 'queued', 'leased', 'done', 'failed', 'dead', 'cancelled'];
const WINDOW = 60000;
const form = { state: '', job: '', page: null, one: null, error: null };
let root;

export function enter(page, id) { root = page; if (id) open(id); else load(); }

async function load() {
  const query = new URLSearchParams({ limit: '100' });
  if (form.state) query.set('state', form.state);
  if (form.job) query.set('job', form.job);
  try { form.page = await get(`/v1/tasks?${query}`); form.error = null; } catch (error) { form.page = null; form.error = error.message; }
  if (location.hash.startsWith('#tasks')) draw(root);
}

// The list and the open task as they are now, unless somebody types, or looks at the past.
export async function refresh() {
  const typing = root?.contains(document.activeElement) && document.activeElement !== root;
  if (!root || typing || state.at !== null) return;
  if (form.one && ['queued', 'leased'].includes(form.one.state)) await open(form.one.id);
  await load();
}

async function open(id) {
  try { form.one = await get(`/v1/tasks/${segment(id)}`); form.error = null; } catch (error) { form.error = error.message; }
  if (location.hash.startsWith('#tasks')) draw(root);
}

export function draw(page) {
  root = page;
  const typing = page.contains(document.activeElement) && /INPUT|TEXTAREA|SELECT/.test(document.activeElement.tagName);
  const lanesAt = page.querySelector('#lanes');
  if (typing && lanesAt) return lanesAt.replaceChildren(lanes());
  page.replaceChildren(
    h('h2', {}, 'Lanes, the last minute'), h('div', { id: 'lanes' }, lanes()),
    h('p', { class: 'soft' }, 'Drawn from the log; above some 50 tasks a second the log is a sample, and so are the lanes.'),
    form.one ? one(form.one) : '', submitForm(), filters(),
    form.error ? h('p', { class: 'bad' }, form.error) : '', list());
}

function lanes() {
  const now = Math.min(Date.now(), until());
  const from = now - WINDOW;
  const names = (picture().members?.members ?? []).map((m) => m.name);
  const bars = new Map(names.map((name) => [name, []]));
  const open = new Map();
  for (const r of state.records) {
    const at = Date.parse(r.ts);
    if (at < from - WINDOW || at > now) continue;
    const key = `${r.task}/${r.attempt}`;
    if (r.event === 'task.started') open.set(key, { node: r.node, start: at, task: r.task });
    if (['task.executed', 'task.finished', 'task.failed'].includes(r.event)) {
      const began = open.get(key);
      open.delete(key);
      const node = r.executor ?? r.node;
      if (r.event === 'task.executed' && began) bars.get(node)?.push({ ...began, end: at, kind: r.outcome && r.outcome !== 'done' ? 'bad' : '' });
    }
  }
  for (const began of open.values()) bars.get(began.node)?.push({ ...began, end: now, kind: 'open' });
  const height = 18 * Math.max(1, names.length) + 6;
  const x = (t) => 110 + Math.max(0, (t - from) / WINDOW) * 690;
  const drawing = svg('svg', { viewBox: `0 0 800 ${height}`, role: 'img', 'aria-label': 'attempts per worker over the last minute' });
  names.forEach((name, i) => {
    const y = 18 * i + 4;
    const label = svg('text', { x: 0, y: y + 11 });
    label.textContent = name;
    drawing.append(label, svg('line', { class: 'lane', x1: 110, x2: 800, y1: y + 16, y2: y + 16 }));
    for (const bar of bars.get(name).slice(-400)) {
      if (bar.end < from) continue;
      const rect = svg('rect', { class: `bar ${bar.kind}`, x: x(bar.start), y, height: 13, width: Math.max(1.5, x(bar.end) - x(bar.start)) });
      const title = svg('title');
      title.textContent = `${bar.task}, ${bar.end - bar.start} ms`;
      rect.append(title);
      rect.addEventListener('click', () => { location.hash = `tasks/${bar.task}`; });
      drawing.append(rect);
    }
  });
  return drawing;
}

function filters() {
  const choose = h('select', { 'aria-label': 'state', onchange: (e) => { form.state = e.target.value; load(); } }, STATES.map((s) => h('option', { value: s, selected: s === form.state }, s || 'all states')));
  const job = h('input', { type: 'text', 'aria-label': 'job', placeholder: 'job', value: form.job, onchange: (e) => { form.job = e.target.value.trim(); load(); } });
  return h('div', { class: 'row' }, h('h2', {}, 'Tasks'), choose, job, h('button', { onclick: load }, 'Look again'),
    h('button', { onclick: () => { form.state = 'dead'; load(); } }, 'Dead letters'));
}

function list() {
  const tasks = form.page?.tasks ?? [];
  const rows = tasks.map((t) => row(
    h('td', { class: 'key' }, h('a', { href: `#tasks/${t.id}` }, t.id)), t.job, h('td', { class: grade(t.state) }, t.state + (t.stale ? ' (may be old)' : '')),
    String(t.attempts.length), t.attempts.at(-1)?.node, h('td', { class: 'key' }, short(t.input)), h('td', { class: 'key' }, short(t.output ?? t.error)), buttons(t)));
  return tasks.length ? table(['id', 'job', 'state', 'attempts', 'node', 'input', 'output', ''], rows) : h('p', { class: 'soft' }, 'No tasks to show.');
}

function buttons(t) {
  const path = `/v1/tasks/${segment(t.id)}`;
  const done = async (question, method, to) => { if (await act(question, () => api(method, to))) { load(); if (form.one) open(t.id); } };
  return h('td', {}, h('div', { class: 'row' },
    ['queued', 'leased'].includes(t.state) && h('button', { class: 'danger', onclick: () => done(`Cancel task ${t.id}?`, 'DELETE', path) }, 'Cancel'),
    t.state === 'dead' && h('button', { onclick: () => done(`Give task ${t.id} another chance?`, 'POST', `${path}/retry`) }, 'Retry')));
}

function one(t) {
  const attempts = t.attempts.map((a) => row(String(a.n), a.epoch, a.node, h('td', { class: grade(a.outcome) }, a.outcome), a.started, a.finished));
  const refused = t.refused.map((r) => row(String(r.n), r.epoch, r.node, h('td', { class: 'bad' }, `refused: ${r.why}`), null, null));
  return h('section', { class: 'card' },
    h('div', { class: 'row' }, h('h2', {}, `Task ${t.id}`), h('a', { href: `#logs/${t.id}` }, 'its log'), h('button', { onclick: () => { form.one = null; location.hash = 'tasks'; } }, 'Close')),
    h('p', {}, `${t.job}, `, h('b', { class: grade(t.state) }, t.state), t.durable ? ', durable' : ', ephemeral', `, created ${t.created}`, t.finished ? `, finished ${t.finished}` : '', t.idempotent_until ? `, the same id is the same task until ${t.idempotent_until}` : ''),
    table(['attempt', 'epoch', 'node', 'outcome', 'started', 'finished'], [...attempts, ...refused]),
    ...t.attempts.filter((a) => a.placement).map((a) => h('p', {}, placed(a))),
    t.excluded?.length > 0 && h('p', {}, `Cannot take it now: ${t.excluded.map((e) => `${e.node} (${e.why})`).join(', ')}`),
    h('pre', {}, `input  ${JSON.stringify(t.input)}\noutput ${JSON.stringify(t.output)}${t.error ? `\nerror  ${t.error}` : ''}`), h('table', {}, h('tbody', {}, h('tr', {}, buttons(t)))));
}

function placed(a) {
  const p = a.placement;
  const could = p.candidates.map((c) => `${c.node} (${c.outstanding} of ${c.capacity}: load ${c.load_percent} %${c.chosen ? ', chosen' : ''})`).join(', ');
  const not = p.excluded.map((e) => `${e.node} (${e.why})`).join(', ');
  return `Attempt ${a.n} was placed by ${p.balancer} among ${could}${p.more ? ` and ${p.more} more` : ''}${not ? `; not ${not}` : ''}.`;
}

function submitForm() {
  const job = h('input', { type: 'text', name: 'job', value: 'multiply', required: true, 'aria-label': 'job' });
  const input = h('input', { type: 'text', name: 'input', value: '{"number": 42}', required: true, 'aria-label': 'input, JSON' });
  const durable = h('input', { type: 'checkbox', checked: true });
  const send = async (event) => {
    event.preventDefault();
    let value;
    try { value = JSON.parse(input.value); } catch { return toast('the input is not JSON; a text needs quotes'); }
    try {
      const receipt = await api('POST', '/v1/tasks', { job: job.value, input: value, ...(durable.checked ? {} : { durable: false }) });
      toast(`accepted: ${receipt.id}`);
      location.hash = `tasks/${receipt.id}`;
    } catch (error) { toast(`not accepted: ${error.message}`); }
    return undefined;
  };
  return h('form', { class: 'row', onsubmit: send }, h('h2', {}, 'Submit'), job, input, h('label', {}, durable, ' durable'), h('button', { type: 'submit' }, 'Submit'));
}
