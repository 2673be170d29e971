'use strict';
// Every text is set as text, never as HTML.
const token = new URLSearchParams(location.search).get('token') || '';
const id = name => document.getElementById(name);
const set = (name, text) => { if (id(name).textContent !== text) id(name).textContent = text; };
const SVG = 'http://www.w3.org/2000/svg';
let state = null, lost = false;

function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
function draw(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}
const clock = seconds => new Date(1000 * seconds).toLocaleTimeString();
// A zero after rounding has no sign.
const fixed = (value, digits) => value.toFixed(digits).replace(/^-(?=[0.]+$)/, '').replace('-', '\u2212');
const number = value => value === null ? '' : fixed(value, 4);

function showSweep() {
  const { driver, states, planned } = state;
  set('where', state.where);
  set('subtitle', `${state.target}. ${state.metric} of ${state.scored}; ${state.better} is better.`);
  id('state').className = 'badge ' + driver.word.replace(' ', '-');
  set('state', driver.word === 'gone' ? 'driver gone' : driver.word);
  const since = driver.beat === null ? '' : clock(driver.beat);
  set('line', driver.word === 'running' ? `${driver.line}, last heartbeat ${since}`
    : driver.word === 'gone' ? `since ${since}: ${driver.line}` : driver.line);
  const open = (states.running || 0) + (states.interrupted || 0);
  const ended = Object.values(states).reduce((a, b) => a + b, 0) - open;
  id('progress').max = Math.max(1, planned);
  id('progress').value = ended;
  const counts = Object.entries(states).map(([name, count]) => `${count} ${name}`).join(', ');
  const best = state.trials.find(trial => trial.number === state.best);
  const facts = [['Trials ended', `${ended} of ${planned}`], ['By state', counts],
    ['Best score', best ? `${number(best.score)} (trial ${best.number})` : ''],
    ['Used', state.used.join(', ')], ['Left', state.left || ''],
    ['In use', state.resources.map(text => text.replace(' used', '')).join(', ')]].filter(fact => fact[1]);
  id('facts').replaceChildren(...facts.map(([name, text]) => make('div', {}, make('dt', {}, name), make('dd', {}, text))));
  id('links').hidden = !state.report;
  id('verdict').hidden = !state.verdict;
  id('verdict').firstElementChild.textContent = state.verdict || '';
  id('end').disabled = driver.word !== 'running';
}

const kindOf = trial => trial.number === state.best ? 'best'
  : trial.state === 'running' || trial.state === 'interrupted' ? trial.state : '';

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(k => k * power).find(k => k >= rough);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(k * step);
  return [found, Math.max(0, -Math.floor(Math.log10(step) + 1e-9))];
}

function showCurves() {
  const shown = state.trials.filter(trial => trial.curve.some(score => score !== null));
  const longest = Math.max(0, ...shown.map(trial => trial.curve.length));
  if (!shown.length) {
    id('plot').replaceChildren();
    set('caption', 'No epoch has been scored yet.');
    return;
  }
  const scores = shown.flatMap(trial => trial.curve).filter(score => score !== null);
  let [low, high] = [Math.min(...scores), Math.max(...scores)];
  const margin = high - low < 1e-6 ? 0.05 : 0.05 * (high - low);
  [low, high] = [low - margin, high + margin];
  const narrow = id('plot').clientWidth < 600;
  const [width, height, left, right, top, bottom] = narrow ? [380, 260, 46, 58, 8, 34] : [1000, 340, 52, 64, 8, 36];
  const x = epoch => left + (longest === 1 ? 0.5 : (epoch - 1) / (longest - 1)) * (width - left - right);
  const y = score => top + (high - score) / (high - low) * (height - top - bottom);
  const label = `${state.metric} after each epoch of ${shown.length} trials`;
  const svg = draw('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': label });
  const [marks, digits] = ticks(low, high, 4);
  for (const mark of marks) {
    svg.append(draw('line', { class: 'axis', x1: left, x2: width - right, y1: y(mark), y2: y(mark) }));
    svg.append(draw('text', { x: left - 6, y: y(mark) + 4, 'text-anchor': 'end' }, fixed(mark, digits)));
  }
  const epochs = longest === 1 ? [1] : ticks(1, longest, narrow ? 4 : 8)[0].filter(Number.isInteger);
  for (const epoch of epochs.length ? epochs : [1, longest])
    svg.append(draw('text', { x: x(epoch), y: height - bottom + 18, 'text-anchor': 'middle' }, String(epoch)));
  svg.append(draw('text', { x: (left + width - right) / 2, y: height - 3, 'text-anchor': 'middle' }, 'epoch'));
  const order = { '': 0, interrupted: 1, running: 2, best: 3 }, taken = [];
  for (const trial of [...shown].sort((a, b) => order[kindOf(a)] - order[kindOf(b)])) {
    const kind = kindOf(trial), known = trial.curve.map((score, k) => [x(k + 1), score]).filter(p => p[1] !== null);
    const points = known.map(([at, score]) => `${at.toFixed(1)},${y(score).toFixed(1)}`);
    const line = draw('polyline', { class: kind, points: points.join(' ') });
    line.append(draw('title', {}, `trial ${trial.number}, ${trial.state}`));
    const [at, score] = known[known.length - 1];
    svg.append(line, draw('circle', { class: kind, cx: at, cy: y(score), r: kind ? 3.5 : 2.5 }));
    const place = [at, y(score) + 4];
    if (kind && taken.every(other => Math.abs(other[0] - at) > 50 || Math.abs(other[1] - place[1]) > 12)) {
      taken.push(place);
      svg.append(draw('text', { class: kind, x: at + 6, y: place[1] }, `trial ${trial.number}`));
    }
  }
  id('plot').replaceChildren(svg);
  set('caption', `${state.metric} over all folds, one line per trial; ${state.better} is better. `
    + 'Blue: not ended. Orange: the best trial that has ended.');
}

function showTrials() {
  const names = state.parameters, titles = ['trial', 'state', state.metric, 'epoch', 'best at', 'time', ...names, ''];
  const isNumber = name => state.trials.every(trial => !(name in trial.drawn) || !isNaN(trial.drawn[name]));
  const numeric = [true, false, true, true, true, true, ...names.map(isNumber), false];
  const cells = (tag, texts) => texts.map((text, k) => make(tag, numeric[k] ? { class: 'number' } : {}, text));
  const head = cells('th', titles);
  for (const cell of head) cell.scope = 'col';
  const asked = new Set(state.requests.filter(r => r.answer === null && r.trial !== null).map(r => r.trial));
  const focus = document.activeElement && document.activeElement.dataset.act;
  id('table').tHead.replaceChildren(make('tr', {}, ...head));
  id('table').tBodies[0].replaceChildren(...state.trials.map(trial => {
    const epoch = trial.total ? `${trial.epoch}/${trial.total}` : '';
    const best = trial.best_epoch ? String(trial.best_epoch) : '';
    const texts = [String(trial.number), trial.state, number(trial.score), epoch, best, trial.time];
    const row = cells('td', [...texts, ...names.map(name => trial.drawn[name] ?? ''), '']);
    if (trial.why) row[1].title = trial.why;
    const last = row[row.length - 1];
    last.className = 'act';
    if (trial.state === 'running') {
      const stop = make('button', { type: 'button', 'data-act': `stop-${trial.number}` }, asked.has(trial.number) ? 'Stopping' : 'Stop');
      stop.disabled = asked.has(trial.number);
      stop.addEventListener('click', () => act({ action: 'stop', trial: trial.number }));
      row[1].append(' ', stop);
    }
    if (trial.point) {
      const copy = make('button', { type: 'button', 'data-act': `copy-${trial.number}`, title: 'Put its parameters into the form below' }, 'Copy');
      copy.addEventListener('click', () => { id('point').value = trial.point; id('point').focus(); });
      last.append(copy);
    }
    return make('tr', trial.number === state.best ? { class: 'best' } : {}, ...row);
  }));
  if (focus) id('table').querySelector(`[data-act="${focus}"]`)?.focus();
  set('hidden', state.trials.length ? (state.hidden ? `${state.hidden} more trials: raypipe trials` : '') : 'No trial yet.');
  id('spreads').replaceChildren(...state.spreads.map(text => make('p', { class: 'note' }, text)));
}

function showFailures() {
  const reasons = state.trials.filter(trial => trial.state === 'failed');
  id('failed').hidden = !reasons.length && !state.failures.length;
  const lines = reasons.map(trial => make('p', {}, `Trial ${trial.number} (${trial.failure || 'error'}): ${trial.why}`));
  const logs = state.failures.map(failure => make('details', {}, make('summary', {}, `Log of trial ${failure.trial}`),
    make('pre', {}, failure.lines.join('\n'))));
  const opened = [...id('logs').querySelectorAll('details[open] summary')].map(summary => summary.textContent);
  for (const log of logs) log.open = opened.includes(log.firstChild.textContent);
  id('logs').replaceChildren(...lines, ...logs);
}

function showRequests() {
  id('requests').replaceChildren(...state.requests.map(request =>
    make('li', {}, `${clock(request.asked)} ${request.what}: ${request.answer === null ? 'no answer yet' : request.answer}`)));
}

function show() {
  const problem = lost ? 'The connection to raypipe watch is lost. It is tried again.' : state && state.error ? `Not up to date: ${state.error}` : '';
  id('problem').hidden = !problem;
  set('problem', problem);
  if (!state || !state.driver) return;
  for (const part of [showSweep, showCurves, showTrials, showFailures, showRequests]) part();
  document.body.dataset.shown = state.driver.word;
}

async function act(what) {
  set('said', '');
  try {
    const answer = await fetch('/act', { method: 'POST', body: JSON.stringify(what),
      headers: { 'Content-Type': 'application/json', 'X-Raypipe-Token': token } });
    const reply = await answer.json();
    set('said', reply.error ? `Refused: ${reply.error}` : reply.said);
  } catch {
    set('said', 'The request did not reach raypipe watch.');
  }
}

id('enqueue').addEventListener('submit', event => {
  event.preventDefault();
  act({ action: 'enqueue', point: id('point').value });
});
id('end').addEventListener('click', () => { if (confirm('End the sweep? Running trials finish their epoch.')) act({ action: 'end' }); });
id('report').href = `/report?token=${encodeURIComponent(token)}`;
addEventListener('resize', () => { if (state && state.driver) showCurves(); });

const events = new EventSource(`/events?token=${encodeURIComponent(token)}`);
events.onmessage = event => { state = JSON.parse(event.data); lost = false; show(); };
events.onopen = () => { lost = false; show(); };
events.onerror = () => { lost = true; show(); };
