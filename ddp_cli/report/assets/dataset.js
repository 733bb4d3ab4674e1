// A dataset: findings, the list of episodes, one episode with videos and curves, histograms, and starts.

function renderDataset(section, root, prefix) {
  const viewer = new EpisodeViewer(section, prefix);
  root.append(
    factList(section.facts),
    panel('Findings', true, findings(section, viewer)),
    panel('Episodes', true, sampleNote(section), el('div', { class: 'browser' }, viewer.list, viewer.box)),
    panel('Where episodes begin, and how long they are', true, startCharts(section, viewer)),
    panel('Values', true, histograms(section)),
    section.schema.length ? panel('Schema', true, schemaTable(section.schema)) : '');
  viewer.select(viewer.order.find((i) => section.full[i]) ?? 0);
  return viewer;
}

function sampleNote(section) {
  const [full, all] = [Object.keys(section.full).length, section.episodes.length];
  if (full === all) return el('p', { class: 'note' }, `All ${all} episodes are shown in full.`);
  return el('p', { class: 'note sample' }, `${full} of ${all} episodes are shown in full: those with findings first, the others `
    + `evenly chosen.${section.cameras.length ? ' The rest have a thumbnail.' : ''} `, el('code', {}, 'ddp report --episodes'), ' shows more.');
}

function findings(section, viewer) {
  if (!section.findings.length) return el('p', { class: 'note' }, 'Nothing was found.');
  return el('ul', { class: 'findings' }, section.findings.map((finding) => el('li', {},
    el('span', { class: 'flag' }, finding.kind), ` ${finding.message}`,
    finding.episodes.length ? el('span', { class: 'links' }, 'show ',
      finding.episodes.map((i) => [viewer.link(i), ' ']).flat()) : '')));
}

class EpisodeViewer {
  constructor(section, prefix) {
    this.section = section;
    this.prefix = prefix;
    this.order = section.episodes.map((_, i) => i);
    this.hasSuccess = section.episodes.some((episode) => episode.success !== null);
    this.rows = section.episodes.map((episode, i) => this.makeRow(episode, i));
    this.body = el('tbody', {}, this.rows);
    const columns = ['', 'episode', 'steps', ...(this.hasSuccess ? ['success'] : []), 'findings'];
    this.list = el('div', { class: 'episodes', tabindex: 0 }, el('table', {},
      el('thead', {}, el('tr', {}, columns.map((name) => el('th', {}, name && this.sortButton(name))))), this.body));
    this.box = el('div', { class: 'episode' });
    this.player = null;
  }

  makeRow(episode, i) {
    const image = episode.thumbnail
      ? el('img', { src: `data:image/jpeg;base64,${episode.thumbnail}`, alt: '', decoding: 'async' }) : '';
    return el('tr', { 'data-episode': i, class: this.section.full[i] ? 'full' : '', click: () => { this.select(i); activate(this); } },
      el('td', {}, image),
      el('td', {}, this.link(i)),
      el('td', {}, String(episode.length)),
      this.hasSuccess ? el('td', {}, episode.success === null ? '–' : episode.success ? 'yes' : 'no') : null,
      el('td', {}, episode.flags.map((kind) => el('span', { class: 'flag' }, kind))));
  }

  /** A link to an episode, by its name. */
  link(i) {
    return el('a', { href: `#${this.prefix}-episode-${i}`, click: (event) => {
      event.preventDefault();
      event.stopPropagation();
      history.replaceState(null, '', `#${this.prefix}-episode-${i}`);
      this.select(i);
      activate(this);
      if (!event.target.closest('.episodes')) this.box.scrollIntoView({ block: 'nearest' });
    } }, this.section.episodes[i].name);
  }

  sortButton(name) {
    const keys = {
      episode: (i) => i,
      steps: (i) => this.section.episodes[i].length,
      success: (i) => Number(this.section.episodes[i].success ?? -1),
      findings: (i) => -this.section.episodes[i].flags.length,
    };
    return el('button', { type: 'button', class: 'sort', click: () => {
      this.descending = this.sortedBy === name && !this.descending;
      this.sortedBy = name;
      const sign = this.descending ? -1 : 1;
      this.order.sort((a, b) => sign * (keys[name](a) - keys[name](b)) || a - b);
      this.body.replaceChildren(...this.order.map((i) => this.rows[i]));
    } }, name);
  }

  select(i) {
    if (i === undefined) return;
    if (this.player) this.player.destroy();
    if (this.selected !== undefined) this.rows[this.selected].classList.remove('selected');
    this.selected = i;
    const row = this.rows[i];
    row.classList.add('selected');
    const [top, bottom] = [row.offsetTop - 40, row.offsetTop + row.offsetHeight];
    if (top < this.list.scrollTop) this.list.scrollTop = top;
    else if (bottom > this.list.scrollTop + this.list.clientHeight) this.list.scrollTop = bottom - this.list.clientHeight;
    this.showEpisode(i);
  }

  showEpisode(i) {
    const episode = this.section.episodes[i];
    const full = this.section.full[i];
    const flags = episode.flags.map((kind) => el('span', { class: 'flag' }, kind));
    const title = el('h4', {}, `Episode ${episode.name}, ${episode.length} steps `, flags);
    this.player = null;
    if (!full) {
      const image = episode.thumbnail ? el('img', { class: 'large', src: `data:image/jpeg;base64,${episode.thumbnail}`, alt: 'first image' }) : '';
      this.box.replaceChildren(title, image, el('p', { class: 'note' }, 'This episode is not shown in full.'));
      return;
    }
    const videos = Object.entries(full.videos).map(([label, id]) => ({ label, id }));
    this.player = new Player({ rate: this.section.rate || 10, count: episode.length, videos });
    const charts = Object.entries(full.curves).map(([key, text]) => this.makeChart(key, text, this.player));
    const missing = [...this.section.cameras.filter((key) => !full.videos[key]),
      ...Object.keys(this.section.vectors).filter((key) => !full.curves[key])];
    this.box.replaceChildren(title, missing.length ? el('p', { class: 'warning' }, `Cannot be read: ${missing.join(', ')}.`) : '',
      this.player.box, ...charts.map((chart) => chart.box),
      this.section.rate ? '' : el('p', { class: 'note' }, 'The control rate is not known; videos play at 10 Hz.'));
    this.player.charts = charts;
    this.player.seek(0);
  }

  makeChart(key, text, player) {
    const names = this.section.vectors[key];
    const columns = decodeColumns(text, names.length);
    const x = columns[0].map((_, step) => step);
    const seek = (step) => { player.seek(step); activate(this); };
    const series = names.map((label, i) => ({ label, values: columns[i] }));
    return lineChart({ title: key, x, series, xLabel: 'step', onSeek: seek });
  }

  step(distance) {
    if (this.player) this.player.seek(this.player.current + distance);
  }

  item(distance) {
    const position = this.order.indexOf(this.selected) + distance;
    this.select(this.order[Math.max(0, Math.min(position, this.order.length - 1))]);
  }

  toggle() {
    if (this.player) this.player.toggle();
  }
}

function startCharts(section, viewer) {
  const { labels } = section.starts;
  if (!labels.length) return el('p', { class: 'note' }, 'No episode can be read.');
  const columns = decodeColumns(section.starts.values, labels.length);
  const chosen = { x: section.starts.x, y: section.starts.y };
  const holder = el('div');
  const draw = () => {
    const points = section.episodes.map((episode, i) => ({
      x: columns[chosen.x][i], y: columns[chosen.y][i], id: i, kind: episode.flags.length ? 'flagged' : '',
      title: `episode ${episode.name}`, onClick: () => { viewer.select(i); activate(viewer); },
    }));
    holder.replaceChildren(pointChart({ title: 'first step of each episode; those with findings are ringed', points,
      xLabel: labels[chosen.x], yLabel: labels[chosen.y], square: true }));
  };
  const options = labels.map((label, i) => [i, label]);
  const choose = (axis) => select(axis, options, chosen[axis], (value) => { chosen[axis] = Number(value); draw(); });
  draw();
  const lengths = section.episodes.map((episode) => episode.length);
  return el('div', { class: 'charts' },
    el('div', {}, el('div', { class: 'choices' }, choose('x'), choose('y')), holder),
    histogram({ title: 'steps of an episode', ...bins(lengths) }));
}

/** Counts of `values` in equal bins. */
function bins(values, count = 24) {
  const low = values.reduce((a, b) => Math.min(a, b));
  const high = values.reduce((a, b) => Math.max(a, b));
  const counts = new Array(high > low ? count : 1).fill(0);
  for (const value of values) {
    counts[high > low ? Math.min(count - 1, Math.floor(((value - low) / (high - low)) * count)) : 0] += 1;
  }
  return { counts, low, high };
}

function histograms(section) {
  return el('div', { class: 'histograms' }, section.dimensions.map((dimension) => {
    const { low, high, mean, std, normalization } = dimension;
    const constant = high - low < 1e-4;
    const marks = normalization === 'gaussian' ? [[mean, 'mean'], [mean - std, 'mean - std'], [mean + std, 'mean + std']] : [];
    return histogram({ title: dimension.label, counts: dimension.counts, low, high, marks, note: constant ? `constant: ${number(mean)}` : normalizationText(dimension) });
  }));
}
