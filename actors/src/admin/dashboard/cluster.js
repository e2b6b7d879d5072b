// Cluster: the map, who hears whom, the registry, counters and charts, and why things are as they are.

import { act, api, card, get, grade, h, micros, row, segment, span, spark, svg, table } from '/parts.js';
import { master, picture, state } from '/live.js';

let why = null;

export function draw(root) {
  const p = picture();
  if (!p.members) return root.replaceChildren(h('p', {}, 'Nothing is known yet.'));
  const lead = master(p);
  const status = p.status ?? {};
  const registry = status.registry;
  const counts = status.tasks;
  root.replaceChildren(
    h('div', { class: 'cards' },
      card('master', lead ? lead.name : 'nobody leads', lead ? '' : 'bad'),
      card('epoch', status.epoch),
      card('members', String(p.members.members.length)),
      card(`registry ${registry?.version ?? ''}`, registry ? (registry.up ? 'answers' : 'away') : '–', registry?.up ? 'ok' : 'bad'),
      card('lease remaining, as last told', span(registry?.lease_remaining_s)),
      ...['queued', 'leased', 'done', 'failed', 'dead'].map((s) => card(`tasks ${s}`, counts ? String(counts[s] ?? 0) : '–', s === 'dead' && counts?.[s] ? 'bad' : '')),
      spark('finished a second, all nodes watched', state.rates, '/s'),
      spark('from creation to start, tasks in the log', state.waits, 'ms'),
      spark('run time of finished tasks', state.runs, 'ms')),
    h('h2', {}, 'Map'), map(p, lead),
    h('h2', {}, 'Who hears whom'),
    h('p', { class: 'soft' }, 'A row is what that node itself says: state, round-trip time and the timer lag of the column’s node. Empty: it did not answer.'),
    matrix(p),
    h('h2', {}, 'Members'), members(p),
    h('div', { class: 'row' },
      h('button', { onclick: () => act('Give mastership to the best candidate?', () => api('POST', '/v1/master/step-down')) }, 'Step down'),
      h('button', { onclick: () => explain(root, '/v1/why/master') }, 'Why this master?')),
    why ? explained() : '');
}

async function explain(root, path) {
  try { why = await get(path); } catch (error) { why = { question: path, answer: [error.message], records: [] }; }
  draw(root);
  document.getElementById('why')?.focus();
}

function explained() {
  const missing = Object.entries(why.missing ?? {}).map(([node, text]) => h('li', { class: 'bad' }, `${node} did not answer: ${text}`));
  return h('section', { id: 'why', tabindex: '-1', class: 'card' }, h('h2', {}, why.question), h('ol', {}, why.answer.map((line) => h('li', {}, line)), missing),
    h('details', {}, h('summary', {}, `${why.records.length} recorded decisions`), h('pre', {}, why.records.map((r) => JSON.stringify(r)).join('\n'))));
}

function map(p, lead) {
  const list = p.members.members.slice(0, 48);
  const place = (i) => {
    const angle = (i / Math.max(1, list.length)) * 2 * Math.PI - Math.PI / 2;
    return list.length === 1 ? [250, 150] : [250 + 180 * Math.cos(angle), 150 + 105 * Math.sin(angle)];
  };
  const edges = [];
  list.forEach((a, i) => list.forEach((b, j) => {
    if (i >= j || !p.views.has(a.name)) return;
    const seenAs = p.views.get(a.name).members.find((m) => m.id === b.id);
    if (list.length > 16 && seenAs?.session) return;
    const [[x1, y1], [x2, y2]] = [place(i), place(j)];
    edges.push(svg('line', { x1, y1, x2, y2, class: seenAs?.session ? 'edge' : 'edge down' }));
  }));
  const nodes = list.map((m, i) => {
    const [x, y] = place(i);
    const load = Math.min(1, (m.running ?? 0) / Math.max(1, m.capacity));
    const label = svg('text', { x, y: y + 36, 'text-anchor': 'middle' });
    label.textContent = m.name;
    const parts = [svg('circle', { cx: x, cy: y, r: 18, class: `node ${m.state}` }), svg('circle', { cx: x, cy: y, r: 14 * Math.sqrt(load), class: 'load' }), label];
    if (lead && m.id === lead.id) parts.push(svg('polygon', { class: 'crown', points: `${x - 10},${y - 20} ${x - 10},${y - 32} ${x - 4},${y - 26} ${x},${y - 34} ${x + 4},${y - 26} ${x + 10},${y - 32} ${x + 10},${y - 20}` }));
    const title = svg('title');
    title.textContent = `${m.name}: ${m.state}${m.master ? ', master' : ''}, running ${m.running ?? '?'} of ${m.capacity}`;
    return svg('g', {}, title, ...parts);
  });
  return h('div', { class: 'map' }, svg('svg', { viewBox: '0 0 500 300', role: 'img', 'aria-label': `${list.length} nodes; ${lead ? `${lead.name} leads` : 'nobody leads'}` }, ...edges, ...nodes));
}

function matrix(p) {
  const list = p.members.members.slice(0, 24);
  const rows = list.map((observer) => {
    const view = p.views.get(observer.name);
    const cells = list.map((subject) => {
      if (!view) return h('td', { class: 'soft' }, '');
      if (observer.id === subject.id) return h('td', { class: 'soft' }, '·');
      const m = view.members.find((x) => x.id === subject.id);
      if (!m) return h('td', { class: 'bad', title: 'not in its view' }, 'unknown');
      const text = m.session ? micros(m.rtt_us) : 'no session';
      return h('td', { class: m.session ? grade(m.state) : 'bad', title: `${observer.name} sees ${subject.name} ${m.state} since ${m.since}` },
        m.state === 'alive' ? text : `${m.state}, ${text}`, m.lag_us > 50000 ? h('small', { class: 'warn' }, ` lag ${micros(m.lag_us)}`) : '');
    });
    return h('tr', {}, h('th', { scope: 'row' }, observer.name), cells);
  });
  return table(['observer ↓ subject →', ...list.map((m) => m.name)], rows, { class: 'matrix' });
}

function members(p) {
  const root = document.getElementById('page');
  const rows = p.members.members.map((m) => row(
    h('td', {}, m.name, m.master ? h('b', { class: 'warn' }, ' master') : ''),
    h('td', { class: grade(m.state) }, m.state), `${m.running ?? '–'} / ${m.capacity}`, m.address, m.host, String(m.weight), m.eligible ? 'yes' : 'no',
    Object.entries(m.tags).map(([k, v]) => `${k}=${v}`).join(' ') || '–', m.registry ? 'yes' : h('td', { class: 'bad' }, 'no'), m.version,
    h('td', {}, h('div', { class: 'row' },
      h('button', { onclick: () => explain(root, `/v1/why/node/${segment(m.name)}`) }, 'Why?'),
      h('button', { onclick: () => act(`Give mastership to ${m.name}?`, () => api('POST', `/v1/members/${segment(m.name)}/promote`)), disabled: m.master || !m.eligible }, 'Promote'),
      h('button', { class: 'danger', onclick: () => act(`Drain ${m.name}? It finishes or hands back its work, leaves and exits.`, () => api('POST', `/v1/members/${segment(m.name)}/drain`)) }, 'Drain')))));
  return table(['node', 'state', 'running', 'address', 'host', 'weight', 'eligible', 'tags', 'registry', 'version', ''], rows);
}
