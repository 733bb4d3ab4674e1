// Charts: curves by uPlot, and small ones as SVG.

const PALETTE = ['#4477aa', '#ee6677', '#228833', '#b79e2f', '#3ba7c9', '#aa3377', '#8a8a8a', '#ee8866'];
const WHOLE_STEPS = [0, 1, 2, 3, 4, 5, 6, 7].flatMap((power) => [1, 2, 5].map((factor) => factor * 10 ** power));
const DASHES = [[], [6, 3], [2, 3]]; // of curves that share a color
const lineCharts = new Set();
const probe = el('span', { hidden: '' });
document.body.append(probe);

function seriesColor(index) {
  return PALETTE[index % PALETTE.length];
}

/** The color of a variable of the style, in the current theme. */
function themeColor(name) {
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}

/**
 * Curves over one x axis. `series`: { label, values, color, points }. With `onSeek(index)`, the chart has a fixed
 * cursor that `setCursor(index)` moves, and clicks and drags call it; otherwise the cursor follows the pointer.
 */
function lineChart({ title, x, series, xLabel, log = false, height = 150, sync = null, onSeek = null }) {
  const box = el('figure', { class: 'chart' }, el('figcaption', {}, title));
  const axis = { stroke: () => themeColor('--muted'), grid: { stroke: () => themeColor('--grid'), width: 1 },
    ticks: { show: false }, font: '11px system-ui, sans-serif' };
  const still = () => () => null;
  const chart = new uPlot({
    width: 320, height, padding: [8, 12, 0, 0],
    scales: { x: { time: false }, y: { distr: log ? 3 : 1 } },
    axes: [{ ...axis, size: 28, incrs: WHOLE_STEPS, values: (_, ticks) => ticks.map((tick) => number(tick)) },
      { ...axis, size: 58, values: (_, ticks) => ticks.map((tick) => (tick === null ? '' : number(tick, 3))) }],
    series: [{ label: xLabel, value: (_, value) => number(value) },
      ...series.map((one, i) => ({ label: one.label, stroke: one.color || seriesColor(i), width: 1.5,
        dash: DASHES[Math.floor(i / PALETTE.length) % DASHES.length], spanGaps: !onSeek, // in an episode, a gap is a fault
        points: { show: one.values.length < 40 && !onSeek, size: 5 }, value: (_, value) => number(value, 5) }))],
    cursor: onSeek
      ? { drag: { x: false, y: false }, points: { size: 6 },
        bind: { mousemove: still, mouseleave: still, mouseenter: still, mousedown: still, mouseup: still, dblclick: still } }
      : { drag: { x: true, y: false }, sync: sync ? { key: sync } : undefined },
  }, [x, ...series.map((one) => one.values)], box);
  if (onSeek) bindSeek(chart, onSeek);
  const resize = () => { if (box.clientWidth > 40) chart.setSize({ width: box.clientWidth, height }); };
  const observer = new ResizeObserver(() => requestAnimationFrame(resize));
  observer.observe(box);
  lineCharts.add(chart);
  let index = 0;
  const setCursor = (next) => {
    index = next;
    chart.setCursor({ left: chart.valToPos(x[index], 'x'), top: 10 });
  };
  if (onSeek) chart.hooks.setSize = [...(chart.hooks.setSize || []), () => setCursor(index)];
  const destroy = () => { observer.disconnect(); lineCharts.delete(chart); chart.destroy(); };
  return { box, setCursor, destroy };
}

function bindSeek(chart, onSeek) {
  const seek = (event) => {
    const left = event.clientX - chart.over.getBoundingClientRect().left;
    onSeek(chart.posToIdx(Math.max(0, Math.min(left, chart.over.clientWidth))));
  };
  chart.over.addEventListener('pointerdown', (event) => {
    chart.over.setPointerCapture(event.pointerId);
    seek(event);
  });
  chart.over.addEventListener('pointermove', (event) => { if (event.buttons) seek(event); });
}

function redrawCharts() {
  for (const chart of lineCharts) chart.redraw(false, true);
}

/** Round numbers that divide `low` to `high` into about `count` parts. */
function ticks(low, high, count = 4) {
  const raw = (high - low || 1) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw);
  const first = Math.ceil(low / step);
  const length = Math.floor(high / step + 1e-9) - first + 1;
  return Number.isFinite(length) ? Array.from({ length }, (_, i) => (first + i) * step) : [];
}

/**
 * Points as SVG: { x, y, low, high, kind, title, text, color, onClick }, `low` to `high` an interval of y, `kind` a
 * class that the style draws; `lines`: { color, points }.
 */
function pointChart({ title, points, lines = [], xLabel, yLabel, logX = false, yRange = null, square = false }) {
  const [width, height, left, bottom, top, right] = [360, square ? 330 : 220, 52, 34, 18, 14];
  const transform = logX ? Math.log10 : (value) => value;
  const isShown = (x, y) => Number.isFinite(x) && Number.isFinite(transform(x)) && Number.isFinite(y);
  const shown = points.filter((point) => isShown(point.x, point.y));
  const box = el('figure', { class: 'chart' }, el('figcaption', {}, title));
  if (!shown.length) return fill(box, {}, [el('p', { class: 'note' }, 'Nothing to show.')]);
  const [xLow, xHigh] = extent(shown.map((point) => transform(point.x)));
  const [yLow, yHigh] = yRange || extent(shown.map((point) => point.y));
  const px = (x) => left + ((transform(x) - xLow) / (xHigh - xLow)) * (width - left - right);
  const py = (y) => height - bottom - ((y - yLow) / (yHigh - yLow)) * (height - bottom - top);
  const image = svg('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': title });
  const xTicks = logX ? logTicks(xLow, xHigh) : ticks(xLow, xHigh);
  for (const tick of xTicks) {
    image.append(svg('line', { class: 'grid', x1: px(tick), x2: px(tick), y1: top, y2: height - bottom }),
      svg('text', { class: 'tick', x: px(tick), y: height - bottom + 14, 'text-anchor': 'middle' }, number(tick, 3)));
  }
  for (const tick of ticks(yLow, yHigh)) {
    image.append(svg('line', { class: 'grid', x1: left, x2: width - right, y1: py(tick), y2: py(tick) }),
      svg('text', { class: 'tick', x: left - 5, y: py(tick) + 4, 'text-anchor': 'end' }, number(tick, 3)));
  }
  image.append(svg('text', { class: 'label', x: (left + width - right) / 2, y: height - 4, 'text-anchor': 'middle' }, shorten(xLabel)),
    svg('text', { class: 'label', x: -(top + height - bottom) / 2, y: 11, transform: 'rotate(-90)', 'text-anchor': 'middle' }, shorten(yLabel)));
  for (const line of lines) {
    image.append(svg('polyline', { class: 'line', stroke: line.color, points: line.points.filter(([x, y]) => isShown(x, y)).map(([x, y]) => `${px(x)},${py(y)}`).join(' ') }));
  }
  for (const point of shown) image.append(drawPoint(point, px, py));
  return fill(box, {}, [image]);
}

function drawPoint(point, px, py) {
  const [x, y] = [px(point.x), py(point.y)];
  const group = svg('g', { class: `point ${point.kind || ''}`, 'data-id': point.id, click: point.onClick || null });
  if (point.low !== undefined) {
    group.append(svg('line', { class: 'interval', stroke: point.color, x1: x, x2: x, y1: py(point.low), y2: py(point.high) }));
  }
  if (point.kind === 'failure') {
    group.append(svg('path', { d: `M${x - 4},${y - 4}l8,8m0,-8l-8,8` }));
  } else {
    group.append(svg('circle', { cx: x, cy: y, r: 4, fill: point.color || null }));
  }
  if (point.onClick) group.append(svg('circle', { class: 'target', cx: x, cy: y, r: 9 }));
  if (point.text) group.append(svg('text', { class: 'tick', x: x + 6, y: y - 6 }, point.text));
  if (point.title) group.append(svg('title', {}, point.title));
  return group;
}

/** A label that fits beside an axis. */
function shorten(text) {
  return text.length > 36 ? `${text.slice(0, 35)}…` : text;
}

/** Lowest and highest value with a margin. */
function extent(values) {
  const low = values.reduce((a, b) => Math.min(a, b));
  const high = values.reduce((a, b) => Math.max(a, b));
  const margin = high > low ? (high - low) * 0.06 : Math.abs(high) * 0.1 || 1;
  return [low - margin, high + margin];
}

function logTicks(low, high) {
  const result = [];
  for (let power = Math.floor(low); power <= high; power += 1) {
    for (const factor of high - low > 1 ? [1, 2, 5] : [1, 2, 3, 4, 5, 6, 7, 8, 9]) {
      const tick = factor * 10 ** power;
      if (Math.log10(tick) >= low && Math.log10(tick) <= high) result.push(tick);
    }
  }
  return result;
}

/** Bars of `counts` from `low` to `high`; `marks`: values to mark, with their names. */
function histogram({ title, counts, low, high, marks = [], note = '' }) {
  const [width, height, bottom] = [220, 90, 16];
  const tallest = Math.max(...counts, 1);
  const bar = width / counts.length;
  const image = svg('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': title });
  counts.forEach((count, i) => {
    // A bin that is not empty can be seen.
    const size = count ? Math.max(1.5, (count / tallest) * (height - bottom - 4)) : 0;
    image.append(svg('rect', { class: 'bar', x: i * bar + 0.5, width: bar - 1, y: height - bottom - size, height: size },
      svg('title', {}, `${count} of ${counts.reduce((a, b) => a + b)}`)));
  });
  for (const [value, name] of marks) {
    const x = high > low ? ((value - low) / (high - low)) * width : width / 2;
    if (x >= 0 && x <= width) image.append(svg('line', { class: 'mark', x1: x, x2: x, y1: 2, y2: height - bottom }, svg('title', {}, name)));
  }
  image.append(svg('text', { class: 'tick', x: 0, y: height - 4 }, number(low)),
    svg('text', { class: 'tick', x: width, y: height - 4, 'text-anchor': 'end' }, high > low ? number(high) : ''));
  return el('figure', { class: 'histogram' }, el('figcaption', {}, title), image, note ? el('p', { class: 'note' }, note) : null);
}
