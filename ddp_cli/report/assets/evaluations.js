// Evaluations: every start as a cell, a map of starts, films, and where evaluations differ.

function renderEvaluations(section, root) {
  const viewer = new StartViewer(section);
  root.append(
    el('div', { class: 'evaluations' }, section.evaluations.map((one) => summary(one))),
    section.paired ? paired(section) : '',
    section.is_sweep ? sweepChart(section.evaluations) : '',
    panel('Starts', true,
      el('p', { class: 'note' }, el('span', { class: 'cell success' }), ' success ', el('span', { class: 'cell failure' }),
        ' no success', section.evaluations.length > 1 ? ' – ringed: outcomes differ' : '',
        section.evaluations.some((one) => Object.keys(one.films).length) ? ' – with a dot: filmed' : ''),
      viewer.cells, viewer.box),
    panel('Map of starts, and steps to success', true, maps(section, viewer)));
  viewer.select(viewer.first());
  return viewer;
}

function summary(one) {
  const bar = svg('svg', { class: 'rate', viewBox: '0 0 200 24', role: 'img', 'aria-label': percent(one.success_rate) },
    svg('rect', { class: 'track', x: 0, y: 8, width: 200, height: 8 }),
    svg('rect', { class: 'filled', x: 0, y: 8, width: 200 * one.success_rate, height: 8 }),
    svg('line', { class: 'interval', x1: 200 * one.interval[0], x2: 200 * one.interval[1], y1: 12, y2: 12 }),
    ...one.interval.map((end) => svg('line', { class: 'interval', x1: 200 * end, x2: 200 * end, y1: 7, y2: 17 })));
  const facts = [...one.facts];
  if (one.mean_steps !== null && one.mean_steps !== undefined) facts.push(['steps to success', `${number(one.mean_steps)} (mean)`]);
  if (one.score !== null && one.score !== undefined) {
    facts.push(['score', number(one.score, 3) + (one.score_interval ? `, 95% interval ${number(one.score_interval[0], 3)} to ${number(one.score_interval[1], 3)}` : '')]);
  }
  if (one.lost.length) facts.push(['not run', `seeds ${listSome(one.lost)}`]);
  return el('div', { class: 'evaluation' }, el('h3', {}, one.name),
    el('p', { class: 'headline' }, el('strong', {}, percent(one.success_rate)), ` ${one.successes} of ${one.episodes.length} episodes`),
    bar, el('p', { class: 'note' }, `95% interval ${percent(one.interval[0])} to ${percent(one.interval[1])}`), factList(facts));
}

/** The first few of `values`, and how many more there are. */
function listSome(values, count = 20) {
  return values.slice(0, count).join(', ') + (values.length > count ? ` and ${values.length - count} more` : '');
}

function paired({ paired: pair, evaluations, differing }) {
  const [first, second] = evaluations.map((one) => one.name);
  const p = pair.p < 0.001 ? pair.p.toExponential(1) : number(pair.p, 2);
  return el('p', { class: 'paired' }, `Both succeed in ${pair.both} starts, only ${first} in ${pair.only_first}, only ${second} in `
    + `${pair.only_second}, neither in ${pair.neither}. ${first} minus ${second}: ${percent(pair.difference)}, 95% interval `
    + `${percent(pair.interval[0])} to ${percent(pair.interval[1])}, p = ${p} (exact McNemar test). `
    + (differing.length ? `Different outcomes: seeds ${listSome(differing)}.` : 'All outcomes are equal.'));
}

function sweepChart(evaluations) {
  const samplers = [...new Set(evaluations.map((one) => one.sampler))];
  const points = evaluations.map((one) => ({ x: one.chunk_ms, y: one.success_rate, low: one.interval[0], high: one.interval[1],
    color: seriesColor(samplers.indexOf(one.sampler)), text: String(one.inference_steps), title: one.name }));
  const lines = samplers.map((sampler, i) => ({ color: seriesColor(i), points: evaluations.filter((one) => one.sampler === sampler)
    .sort((a, b) => a.chunk_ms - b.chunk_ms).map((one) => [one.chunk_ms, one.success_rate]) }));
  return el('div', { class: 'charts' },
    pointChart({ title: 'success rate against latency; labels are denoising steps', points, lines, logX: true,
      xLabel: 'time per action chunk [ms]', yLabel: 'success rate', yRange: [0, 1] }),
    el('div', {}, el('p', { class: 'legend' }, samplers.map((sampler, i) => [swatch(i), `${sampler} `]).flat()),
      table(['sampler', 'steps', 'time per chunk', 'success', '95% interval'], evaluations.map((one) => [one.sampler || '–',
        number(one.inference_steps), `${number(one.chunk_ms)} ms`, `${one.successes} of ${one.episodes.length}`,
        `${percent(one.interval[0])} to ${percent(one.interval[1])}`]))));
}

class StartViewer {
  constructor(section) {
    this.section = section;
    this.seeds = [...new Set(section.evaluations.flatMap((one) => one.episodes.map((episode) => episode.seed)))].sort((a, b) => a - b);
    this.differing = new Set(section.differing);
    this.buttons = new Map(this.seeds.map((seed) => [seed, []]));
    this.players = [];
    this.cells = el('div', {}, section.evaluations.map((one) => el('div', { class: 'row' },
      section.evaluations.length > 1 ? el('h4', {}, one.name) : '',
      el('div', { class: 'cells' }, this.seeds.map((seed) => this.makeCell(one, seed))))));
    this.box = el('div', { class: 'start' });
  }

  makeCell(one, seed) {
    const episode = one.episodes.find((other) => other.seed === seed);
    if (!episode) return el('span', { class: 'cell missing', title: `seed ${seed}: not run` });
    const classes = ['cell', episode.success ? 'success' : 'failure', this.differing.has(seed) ? 'differs' : '', one.films[seed] ? 'filmed' : ''];
    const button = el('button', { type: 'button', class: classes.join(' '), 'data-seed': seed,
      title: `seed ${seed}: ${outcome(episode)}`, 'aria-label': `seed ${seed}: ${outcome(episode)}`,
      click: () => { this.select(seed); activate(this); } });
    this.buttons.get(seed).push(button);
    return button;
  }

  /** The start that is shown first: one with a film, or else one with a different outcome. */
  first() {
    const filmed = this.seeds.find((seed) => this.section.evaluations.some((one) => one.films[seed]));
    return filmed ?? this.section.differing[0] ?? this.seeds[0];
  }

  select(seed) {
    if (seed === undefined) return;
    for (const button of this.buttons.get(this.selected) || []) button.classList.remove('selected');
    for (const button of this.buttons.get(seed)) {
      button.classList.add('selected');
      const cells = button.parentElement;
      const [top, bottom] = [button.offsetTop - 8, button.offsetTop + button.offsetHeight + 8];
      if (top < cells.scrollTop) cells.scrollTop = top;
      else if (bottom > cells.scrollTop + cells.clientHeight) cells.scrollTop = bottom - cells.clientHeight;
    }
    this.selected = seed;
    for (const player of this.players) player.destroy();
    this.players = [];
    this.box.replaceChildren(el('h4', {}, `Seed ${seed}`),
      el('div', { class: 'evaluations' }, this.section.evaluations.map((one) => this.showEpisode(one, seed))));
  }

  showEpisode(one, seed) {
    const episode = one.episodes.find((other) => other.seed === seed);
    const film = one.films[seed];
    const name = this.section.evaluations.length > 1 ? `${one.name}: ` : '';
    const text = el('p', {}, name + (episode ? outcome(episode) : 'not run'));
    const places = episode ? Object.entries(episode.start).map(([place, values]) => `${place} ${values.map((x) => number(x)).join(', ')}`) : [];
    const start = places.length ? el('p', { class: 'note' }, `start: ${places.join('; ')}`) : '';
    if (!film) {
      const hint = el('p', { class: 'note' }, 'Not filmed; ', el('code', {}, 'ddp report --film'), ' films episodes.');
      return el('div', { class: 'evaluation' }, text, start, episode ? hint : '');
    }
    const player = new Player({ rate: film.rate, videos: [{ id: film.video, label: '' }] });
    this.players.push(player);
    return el('div', { class: 'evaluation' }, text, start, player.box,
      film.agrees ? '' : el('p', { class: 'warning' }, 'The filmed episode ended differently than the evaluated one.'));
  }

  step(distance) {
    for (const player of this.players) player.seek(player.current + distance);
  }

  item(distance) {
    const position = this.seeds.indexOf(this.selected) + distance;
    this.select(this.seeds[Math.max(0, Math.min(position, this.seeds.length - 1))]);
  }

  toggle() {
    for (const player of this.players) player.toggle();
  }
}

function outcome(episode) {
  const score = episode.score === null || episode.score === undefined ? '' : `, score ${number(episode.score, 3)}`;
  return `${episode.success ? 'success at' : 'no success after'} step ${episode.steps}${score}`;
}

function maps(section, viewer) {
  const places = [...new Set(section.evaluations.flatMap((one) => one.episodes.flatMap((episode) => Object.keys(episode.start))))];
  const holder = el('div', { class: 'charts' });
  const few = section.evaluations.length <= 2;
  const draw = (place) => holder.replaceChildren(
    ...(place ? (few ? section.evaluations.map((one) => map(one, place, viewer)) : [mapOfAll(section, place, viewer)]) : [el('p', { class: 'note' },
      'The positions at the start were not recorded: the task has none, or the evaluation is of an older version of ddp.')]),
    ...section.evaluations.map((one) => (few ? stepsHistogram(one) : '')));
  draw(section.place);
  const choice = places.length > 1 ? select('position of', places.map((place) => [place, place]), section.place, draw) : '';
  return el('div', {}, choice, holder);
}

function map(one, place, viewer) {
  const points = one.episodes.filter((episode) => episode.start[place]).map((episode) => ({
    x: episode.start[place][0], y: episode.start[place][1], id: episode.seed, kind: episode.success ? 'success' : 'failure',
    title: `seed ${episode.seed}: ${outcome(episode)}`, onClick: () => { viewer.select(episode.seed); activate(viewer); } }));
  return pointChart({ title: `${one.name}: ${place} at the start (dot: success, cross: none)`, points, xLabel: 'x', yLabel: 'y', square: true });
}

/** One map of several evaluations. */
function mapOfAll(section, place, viewer) {
  const points = viewer.seeds.flatMap((seed) => {
    const episodes = section.evaluations.flatMap((one) => one.episodes.filter((episode) => episode.seed === seed && episode.start[place]));
    if (!episodes.length) return [];
    const successes = episodes.filter((episode) => episode.success).length;
    const kind = successes === episodes.length ? 'success' : successes ? 'mixed' : 'failure';
    const [x, y] = episodes[0].start[place];
    return [{ x, y, kind, id: seed, title: `seed ${seed}: success in ${successes} of ${episodes.length} evaluations`,
      onClick: () => { viewer.select(seed); activate(viewer); } }];
  });
  return pointChart({ title: `${place} at the start (dot: success in all, ringed: in some, cross: in none)`, points, xLabel: 'x', yLabel: 'y', square: true });
}

function stepsHistogram(one) {
  const steps = one.episodes.filter((episode) => episode.success).map((episode) => episode.steps);
  if (!steps.length) return '';
  return histogram({ title: `${one.name}: steps to success`, ...bins(steps, 16) });
}

function renderOpenLoop(section, root) {
  root.append(
    el('p', {}, 'Distance from the recorded actions in recorded states: not a success rate.'),
    factList(section.facts),
    table(['part', 'method', 'error', '95% interval'], section.parts.flatMap((part) => part.methods.map((method) => [
      `${part.name} [${part.unit}]`, method.name, number(method.error),
      // That of few episodes may reach below 0.
      method.interval ? `${number(Math.max(0, method.interval[0]))} to ${number(method.interval[1])}` : '–']))),
    el('div', { class: 'charts' }, section.parts.map((part) => lineChart({
      title: `error of ${part.name} by step into the chunk [${part.unit}]`, x: part.methods[0].by_step.map((_, i) => i + 1),
      series: part.methods.map((method) => ({ label: method.name, values: method.by_step })), xLabel: 'step', height: 180 }).box)));
  return null;
}
