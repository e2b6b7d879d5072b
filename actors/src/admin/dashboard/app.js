// The frame around the pages: which one is shown, contact with the node, the time scrubber.

import { clock } from '/parts.js';
import { onChange, picture, start, state } from '/live.js';
import * as cluster from '/cluster.js';
import * as tasks from '/tasks.js';
import * as pages from '/pages.js';

const root = document.getElementById('page');
const scrub = document.getElementById('scrub');
// What makes a page draw itself again.
const PAGES = {
  cluster: { draw: () => cluster.draw(root), on: ['members', 'status', 'beat'] },
  actors: { draw: () => pages.actors(root), on: ['actors', 'beat'] },
  tasks: { enter: (arg) => tasks.enter(root, arg), draw: () => tasks.draw(root), beat: tasks.refresh, on: ['records'] },
  events: { enter: (arg) => pages.only(arg ?? ''), draw: () => pages.records(root, true), on: ['records'] },
  logs: { enter: (arg) => pages.only(arg ?? ''), draw: () => pages.records(root, false), on: ['records'] },
  registry: { draw: () => pages.registry(root), on: ['members', 'beat'] },
};

const shown = () => {
  const [name, arg] = location.hash.slice(1).split('/');
  return [PAGES[name] ? name : 'cluster', arg && decodeURIComponent(arg)];
};

function show() {
  const [name, arg] = shown();
  for (const link of document.querySelectorAll('#nav a')) {
    if (link.hash === `#${name}`) link.setAttribute('aria-current', 'page'); else link.removeAttribute('aria-current');
  }
  document.title = `Troupe · ${name}`;
  root.replaceChildren();
  PAGES[name].enter?.(arg);
  PAGES[name].draw();
}

// Nobody's button, field or selection is drawn away under their hands.
function busy() {
  const el = document.activeElement;
  return document.getElementById('ask').open || (root.contains(el) && /^(BUTTON|SUMMARY)$/.test(el.tagName) && el.matches(':focus-visible')) || !!String(getSelection());
}

function contact() {
  const { live, stream, since, heard } = state.contact;
  const link = document.getElementById('link');
  link.textContent = live ? (stream ? 'live' : 'live, the record stream is being opened again') : 'no contact';
  link.className = `link ${live && stream ? 'live' : 'lost'}`;
  const lost = document.getElementById('lost');
  lost.hidden = live;
  if (!live) lost.textContent = heard ? `This node has not answered since ${clock(since)}. What is shown is from ${clock(heard)}, not from now.` : 'This node does not answer.';
  document.body.classList.toggle('stale', !live);
  document.getElementById('who').textContent = state.status ? `${state.status.cluster}, seen from ${state.status.node}` : '';
}

function scrubber() {
  scrub.max = String(Math.max(0, state.frames.length - 1));
  if (state.at === null) scrub.value = scrub.max; else scrub.value = String(state.at);
  const past = state.at !== null;
  document.body.classList.toggle('past', past);
  document.getElementById('now').hidden = !past;
  document.getElementById('when').textContent = past ? `as it was at ${clock(picture().time)}` : 'now';
}

scrub.addEventListener('input', () => {
  state.at = Number(scrub.value) >= state.frames.length - 1 ? null : Number(scrub.value);
  scrubber();
  PAGES[shown()[0]].draw();
});
document.getElementById('now').addEventListener('click', () => { state.at = null; scrubber(); show(); });
addEventListener('hashchange', () => { show(); root.focus({ preventScroll: true }); });

onChange((what) => {
  if (what === 'contact') contact();
  scrubber();
  if (what === 'beat' && !busy()) PAGES[shown()[0]].beat?.();
  if (PAGES[shown()[0]].on.includes(what) && !busy() && state.at === null) PAGES[shown()[0]].draw();
});

show();
start();
