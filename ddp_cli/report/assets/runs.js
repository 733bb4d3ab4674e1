// Training runs, overlaid.

function renderRuns(section, root) {
  const { runs } = section;
  const viewer = runs.some((run) => Object.keys(run.films).length) ? new FilmViewer(runs) : null;
  root.append(
    runs.length > 1 ? el('p', { class: 'legend' }, runs.map((run, i) => [swatch(i), `${run.name} `]).flat()) : '',
    successChart(runs),
    viewer ? panel('Films of the evaluations during training', true, viewer.choice, viewer.box) : '',
    el('div', { class: 'charts' }, section.metrics.map((metric) => metricChart(metric, runs))),
    ...runs.map((run) => panel(run.name, true,
      factList(run.facts),
      settingsTable(run),
      partErrors(run))));
  return viewer;
}

/** The films of `ddp train --eval-every`, one at a time. */
class FilmViewer {
  constructor(runs) {
    this.films = runs.flatMap((run) => Object.entries(run.films).map(([step, id]) => ({ id, rate: run.rate,
      name: runs.length > 1 ? `${run.name}, step ${step}` : `step ${step}` })));
    this.choice = el('div');
    this.box = el('div', { class: 'film' });
    this.select(this.films.length - 1);
  }

  select(i) {
    if (this.player) this.player.destroy();
    this.selected = i;
    const { id, rate } = this.films[i];
    this.player = new Player({ rate, videos: [{ id, label: '' }] });
    this.box.replaceChildren(this.player.box);
    this.choice.replaceChildren(select('checkpoint', this.films.map((film, j) => [j, film.name]), i,
      (value) => { this.select(Number(value)); activate(this); }));
  }

  step(distance) {
    this.player.seek(this.player.current + distance);
  }

  item(distance) {
    this.select(Math.max(0, Math.min(this.selected + distance, this.films.length - 1)));
  }

  toggle() {
    this.player.toggle();
  }
}

function swatch(i) {
  const mark = el('span', { class: 'swatch' });
  mark.style.background = seriesColor(i);
  return mark;
}

function metricChart({ key, title, unit, log }, runs) {
  // Runs are logged at different steps: one axis with the steps of all.
  const tables = runs.map((run) => {
    const points = run.metrics[key] || [];
    return [points.map(([step]) => step), points.map(([, value]) => (log && value <= 0 ? null : value))];
  });
  const [x, ...columns] = uPlot.join(tables);
  const series = columns.map((values, i) => ({ label: runs[i].name, values, color: seriesColor(i) }));
  return lineChart({ title: unit ? `${title} [${unit}]` : title, x, series, xLabel: 'step', log, height: 180, sync: 'runs' }).box;
}

function successChart(runs) {
  if (!runs.some((run) => run.success.length)) return '';
  const points = runs.flatMap((run, i) => run.success.map((one) => ({
    x: one.step, y: one.rate, low: one.low, high: one.high, color: seriesColor(i),
    title: `${run.name}, ${one.source}: ${one.successes} of ${one.count}, 95% interval ${percent(one.low)} to ${percent(one.high)}`,
  })));
  const lines = runs.map((run, i) => ({ color: seriesColor(i),
    points: run.success.filter((one) => one.during_training).map((one) => [one.step, one.rate]) }));
  return el('div', { class: 'charts' },
    pointChart({ title: 'success rate by checkpoint, with 95% intervals', points, lines, xLabel: 'step', yLabel: 'success rate', yRange: [0, 1] }),
    table(['checkpoint', 'success', '95% interval', 'by'], runs.flatMap((run, i) => run.success.map((one) => [
      el('span', {}, runs.length > 1 ? swatch(i) : '', `step ${one.step}`), `${one.successes} of ${one.count} (${percent(one.rate)})`,
      `${percent(one.low)} to ${percent(one.high)}`, one.by]))));
}

function settingsTable(run) {
  if (!run.settings.length) return el('p', { class: 'note' }, `All settings are those of the preset ${run.preset}.`);
  return el('div', {}, el('h4', {}, `Settings that differ from the preset ${run.preset}`),
    table(['setting', 'preset', 'run'], run.settings));
}

function partErrors(run) {
  if (!run.errors.length) return '';
  const rows = run.errors.flatMap((one) => one.parts.map((part) => [`step ${one.step}`, one.episodes, part.name,
    `${number(part.error)} ${part.unit}`, part.interval ? `${number(part.interval[0])} to ${number(part.interval[1])}` : '–']));
  return el('div', {}, el('h4', {}, 'Error on recorded episodes by part of the action'),
    table(['checkpoint', 'episodes', 'part', 'error', '95% interval'], rows));
}
