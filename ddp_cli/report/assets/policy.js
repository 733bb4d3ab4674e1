// A checkpoint or an exported folder.

function renderPolicy(section, root) {
  const facts = [...section.facts];
  if (section.latency) {
    facts.push(['latency', `${number(section.latency.p50_ms, 3)} ms per action chunk (95th percentile `
      + `${number(section.latency.p95_ms, 3)} ms), one CPU thread of the exporting machine`]);
  }
  const size = section.files.reduce((sum, [, bytes]) => sum + bytes, 0);
  root.append(
    factList(facts),
    panel('Schema', true, schemaTable(section.schema)),
    section.normalization.length ? panel('Normalization', section.normalization.length <= 24,
      table(['value', 'normalization'], section.normalization.map((row) => [row.label, normalizationText(row)]))) : '',
    panel('Proof', true, section.proof.length ? el('ul', {}, section.proof.map((line) => el('li', {}, line))) : el('p', { class: 'note' },
      section.is_exported ? 'This format is not compared with the checkpoint.' : 'A checkpoint is what exports are compared with.')),
    panel('Files', true, table(['file', 'MB'], [...section.files.map(([name, bytes]) => [name, (bytes / 1e6).toFixed(3)]),
      ['together', (size / 1e6).toFixed(3)]])));
  return null;
}
