// Draws the sections of the page.

const RENDERERS = { dataset: renderDataset, runs: renderRuns, evaluations: renderEvaluations, 'open-loop': renderOpenLoop, policy: renderPolicy };
const KINDS = { dataset: 'dataset', runs: 'training', evaluations: 'evaluation', 'open-loop': 'recorded episodes', policy: 'policy' };
const THEMES = { auto: 'light dark', light: 'light', dark: 'dark' };

function themeChoice() {
  return select('theme', Object.keys(THEMES).map((name) => [name, name]), 'auto', (name) => {
    document.documentElement.style.colorScheme = THEMES[name];
    redrawCharts();
  });
}

matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redrawCharts);

const main = el('main');
document.body.append(
  el('header', {}, el('h1', {}, page.title), themeChoice()),
  main);
page.sections.forEach((section, i) => {
  const root = el('section', { id: `section-${i}`, class: `kind-${section.kind}` },
    el('h2', {}, el('span', { class: 'kind' }, KINDS[section.kind]), section.title));
  main.append(root);
  const viewer = RENDERERS[section.kind](section, root, `section-${i}`);
  if (viewer && !activeViewer) activate(viewer);
  const match = location.hash.match(/^#section-(\d+)-episode-(\d+)$/);
  if (viewer && match && Number(match[1]) === i && section.kind === 'dataset' && section.episodes[match[2]]) viewer.select(Number(match[2]));
});
if (activeViewer) {
  document.querySelector('header').append(el('p', { class: 'note' },
    'Keys: left and right for steps (shift: 10), up and down for episodes, space to play.'));
}
document.documentElement.dataset.ready = 'true';
