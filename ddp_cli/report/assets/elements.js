// Elements of the page. Text of the data only ever becomes a text node or an attribute value, never HTML.

const page = JSON.parse(document.getElementById('data').textContent);

/** An element with attributes (functions are event handlers, null and false are left out) and children. */
function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS('http://www.w3.org/2000/svg', tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') element.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) element.append(child);
  }
  return element;
}

/** A table; cells are texts or elements. */
function table(header, rows, attributes = {}) {
  return el('div', { class: 'scroll' }, el('table', attributes,
    header.length ? el('thead', {}, el('tr', {}, header.map((name) => el('th', {}, name)))) : null,
    el('tbody', {}, rows.map((row) => el('tr', {}, row.map((cell) => el('td', {},
      typeof cell === 'string' && cell.length > 24 ? el('div', { class: 'long' }, cell) : cell)))))));
}

/** Names and values. */
function factList(facts) {
  return el('dl', { class: 'facts' }, facts.flatMap(([name, value]) => [el('dt', {}, name), el('dd', {}, value)]));
}

function schemaTable(rows) {
  return table(['name', 'kind', 'shape', 'meaning', 'normalization', 'source'], rows);
}

/** What becomes of a value in a policy. */
function normalizationText({ normalization, low, high, mean, std }) {
  return {
    range: `${number(low)} to ${number(high)} becomes -1 to 1`,
    gaussian: `mean ${number(mean)} and deviation ${number(std)} become 0 and 1`,
    identity: 'not normalized',
  }[normalization];
}

/** A part of a section that can be folded. */
function panel(title, open, ...children) {
  return el('details', open ? { open: '' } : {}, el('summary', {}, el('h3', {}, title)), ...children);
}

function select(label, options, chosen, onChange) {
  const input = el('select', { change: () => onChange(input.value) },
    options.map(([value, text]) => el('option', { value, selected: String(value) === String(chosen) ? '' : null }, text)));
  return el('label', { class: 'select' }, `${label} `, input);
}

/** The number as text: `digits` significant ones, without trailing zeros. */
function number(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return '–';
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return String(value);
  const rounded = Number(value.toPrecision(digits));
  return Math.abs(rounded) < 1e9 ? String(rounded) : rounded.toExponential();
}

function percent(value) {
  return value === null ? '–' : `${(100 * value).toFixed(1)}%`;
}

/** little-endian float32 in base64, in rows of `width` numbers: an array of columns; null is not a finite number. */
function decodeColumns(text, width) {
  const bytes = decodeBytes(text);
  const values = new Float32Array(bytes.buffer);
  const count = width ? values.length / width : 0;
  return Array.from({ length: width }, (_, column) => {
    const result = new Array(count);
    for (let row = 0; row < count; row += 1) {
      const value = values[row * width + column];
      result[row] = Number.isFinite(value) ? value : null;
    }
    return result;
  });
}

function decodeBytes(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

// -- what the keyboard moves ---------------------------------------------------------------------

/** The viewer that was used last: { step(n), item(n), toggle() }. */
let activeViewer = null;

function activate(viewer) {
  activeViewer = viewer;
}

document.addEventListener('keydown', (event) => {
  if (!activeViewer || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.target.closest('select, textarea, input:not([type=range])')) return;
  const distance = event.shiftKey ? 10 : 1;
  const actions = {
    ArrowLeft: () => activeViewer.step(-distance),
    ArrowRight: () => activeViewer.step(distance),
    ArrowUp: () => activeViewer.item(-1),
    ArrowDown: () => activeViewer.item(1),
  };
  if (event.key === ' ' && !event.target.closest('button, summary, a')) actions[' '] = () => activeViewer.toggle();
  if (actions[event.key]) {
    event.preventDefault();
    actions[event.key]();
  }
});
