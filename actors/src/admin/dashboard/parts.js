// Small parts that every page uses: elements, requests, questions, charts. Text is always set as text, never as markup.

export function h(tag, props = {}, ...children) {
  const el = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith('on')) el.addEventListener(key.slice(2), value);
    else if (key === 'class') el.className = value;
    else el.setAttribute(key, value === true ? '' : value);
  }
  el.append(...children.flat().filter((c) => c !== undefined && c !== null && c !== false));
  return el;
}

export function svg(tag, props = {}, ...children) {
  const el = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [key, value] of Object.entries(props)) el.setAttribute(key, value);
  el.append(...children);
  return el;
}

// The token stays in this tab, and is asked for when the node asks for one.
const token = { get: () => sessionStorage.getItem('token'), asking: null };

function askForToken(words) {
  token.asking ??= new Promise((resolve) => {
    const dialog = document.getElementById('login');
    const field = document.getElementById('token');
    document.getElementById('why').textContent = words;
    dialog.addEventListener('close', () => {
      if (field.value.trim()) sessionStorage.setItem('token', field.value.trim());
      field.value = '';
      token.asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return token.asking;
}

// A request with the token. What is refused for want of one is asked again once there is another.
export async function ask(path, options = {}) {
  for (;;) {
    const shown = token.get();
    const headers = { ...options.headers, ...(shown ? { authorization: `Bearer ${shown}` } : {}) };
    const signal = options.within ? AbortSignal.timeout(options.within) : options.signal;
    const response = await fetch(path, { ...options, headers, signal, cache: 'no-store' });
    if (response.status !== 401) return response;
    const refused = await response.json().catch(() => null);
    // Another one may have been given meanwhile.
    if (token.get() === shown) await askForToken(refused?.error?.message ?? 'This node asks for a token.');
  }
}

// A request of this node; an error carries the node's own words.
export async function api(method, path, body, within = 20000) {
  const options = { method, within };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers = { 'content-type': 'application/json' };
  }
  const response = await ask(path, options);
  const text = await response.text();
  let value = null;
  try { value = JSON.parse(text); } catch { /* An answer that is no JSON is told below. */ }
  if (!response.ok) throw new Error(value?.error ? `${value.error.message} [${value.error.code}]` : `status ${response.status}`);
  return value;
}

export const get = (path, within) => api('GET', path, undefined, within);
export const segment = encodeURIComponent;

// The records of a stream, one by one, until it ends.
export async function stream(path, opened, each, options = {}) {
  const response = await ask(path, { ...options, headers: { accept: 'application/x-ndjson' } });
  if (!response.ok) throw new Error(`status ${response.status}`);
  opened();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const whole = (rest + value).split('\n');
    rest = whole.pop();
    for (const line of whole.filter(Boolean)) {
      try { each(JSON.parse(line)); } catch { /* Not ours. */ }
    }
  }
}

let hide;
export function toast(text) {
  const el = document.getElementById('toast');
  el.textContent = text;
  el.hidden = false;
  clearTimeout(hide);
  hide = setTimeout(() => { el.hidden = true; }, 8000);
}

export function confirmed(question) {
  const dialog = document.getElementById('ask');
  document.getElementById('question').textContent = question;
  dialog.showModal();
  // `close` comes later than the answer, when another question may be open already: the answer itself is listened to.
  const settled = new AbortController();
  const { signal } = settled;
  return new Promise((resolve) => {
    const answer = (yes) => { settled.abort(); resolve(yes); };
    dialog.querySelector('form').addEventListener('submit', (e) => answer(e.submitter?.value === 'yes'), { signal });
    dialog.addEventListener('cancel', () => answer(false), { signal });
  });
}

// Asks, does it, says what came of it.
export async function act(question, deed) {
  if (!(await confirmed(question))) return undefined;
  try {
    const answer = await deed();
    toast('done');
    return answer ?? true;
  } catch (error) {
    toast(`not done: ${error.message}`);
    return undefined;
  }
}

export const clock = (ms) => new Date(ms).toTimeString().slice(0, 8);
export const short = (value) => {
  const text = typeof value === 'string' ? value : JSON.stringify(value ?? null);
  return text.length > 80 ? `${text.slice(0, 79)}…` : text;
};
export function span(seconds) {
  if (seconds === null || seconds === undefined) return '–';
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}
export const micros = (us) => (us === null || us === undefined ? '–' : us < 1000 ? `${us} µs` : `${(us / 1000).toFixed(1)} ms`);
export const grade = (state) => ({ alive: 'ok', running: 'ok', done: 'ok', suspect: 'warn', joining: 'warn', draining: 'warn', restarting: 'warn', stopped: 'warn', queued: 'soft', leased: 'warn' })[state] ?? 'bad';

export function table(heads, rows, props = {}) {
  const head = h('tr', {}, heads.map((text) => h('th', { scope: 'col' }, text)));
  return h('div', { class: 'wide', tabindex: '0' }, h('table', props, h('thead', {}, head), h('tbody', {}, rows)));
}
export const row = (...cells) => h('tr', {}, cells.map((cell) => (cell instanceof HTMLTableCellElement ? cell : h('td', {}, cell ?? '–'))));
export const card = (label, value, tone) => h('div', { class: 'card' }, h('b', { class: tone }, value ?? '–'), h('span', {}, label));

export function spark(label, points, unit) {
  const values = points.filter((p) => p !== null);
  const top = Math.max(1e-9, ...values);
  const line = points.map((p, i) => (p === null ? null : `${((i / Math.max(1, points.length - 1)) * 200).toFixed(1)},${(38 - (p / top) * 34).toFixed(1)}`)).filter(Boolean);
  const last = values.at(-1);
  const text = last === undefined ? '–' : `${last < 10 ? last.toFixed(1) : Math.round(last)} ${unit}`;
  const chart = svg('svg', { viewBox: '0 0 200 40', role: 'img', 'aria-label': `${label}, now ${text}` }, svg('polyline', { class: 'spark', points: line.join(' ') }));
  return h('div', { class: 'card' }, h('b', {}, text), chart, h('span', {}, label));
}
