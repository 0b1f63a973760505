// Sorts tables by a click on a heading, draws the figures, and keeps a served page up to date.
'use strict';

const SECONDS = 15;
const chosen = {}; // column and direction by table, so that an update keeps the chosen order

function sortTable(table, column, ascending) {
  const body = table.tBodies[0];
  const numeric = table.tHead.rows[0].cells[column].querySelector('button').dataset.sort === 'num';
  const value = row => {
    const cell = row.cells[column];
    if (!numeric) return cell.textContent.trim() || null;
    return cell.dataset.v === undefined ? null : Number(cell.dataset.v);
  };
  const rows = Array.from(body.rows, row => [value(row), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null); // rows without a value come last
    return (numeric ? a - b : a.localeCompare(b, undefined, {numeric: true})) * (ascending ? 1 : -1);
  });
  body.append(...rows.map(([, row]) => row));
  for (const [i, cell] of Array.from(table.tHead.rows[0].cells).entries()) {
    if (i === column) cell.setAttribute('aria-sort', ascending ? 'ascending' : 'descending');
    else cell.removeAttribute('aria-sort');
  }
}

function makeSortable(root) {
  for (const table of root.querySelectorAll('table.sortable')) {
    for (const button of table.tHead.querySelectorAll('button')) {
      button.addEventListener('click', () => {
        const cell = button.closest('th');
        chosen[table.id] = [cell.cellIndex, cell.getAttribute('aria-sort') !== 'ascending'];
        sortTable(table, ...chosen[table.id]);
      });
    }
    if (table.id in chosen) sortTable(table, ...chosen[table.id]);
  }
}

const SETTINGS = {
  responsive: true,
  displaylogo: false,
  modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d'],
};

function draw(root) {
  for (const place of root.querySelectorAll('.plot')) {
    const figure = JSON.parse(place.parentElement.querySelector('script').textContent);
    Plotly.newPlot(place, figure.data, figure.layout, SETTINGS);
  }
}

// An update replaces the content of the page, figures included, but keeps its scrolling and sorting.
let version; // ETag of the shown content

async function refresh() {
  if (document.hidden) return;
  const answer = await fetch(location.pathname, {cache: 'no-cache'}).catch(() => null); // the server may be gone
  if (!answer || !answer.ok || answer.headers.get('ETag') === version) return;
  version = answer.headers.get('ETag');
  const news = new DOMParser().parseFromString(await answer.text(), 'text/html');
  const old = document.getElementById('main');
  const scrolled = Array.from(old.querySelectorAll('.scroll'), e => [e.scrollLeft, e.scrollTop]);
  const next = document.importNode(news.getElementById('main'), true);
  makeSortable(next);
  old.querySelectorAll('.js-plotly-plot').forEach(p => Plotly.purge(p)); // drops their window listeners
  old.replaceWith(next);
  draw(next);
  next.querySelectorAll('.scroll').forEach((e, i) => {
    if (scrolled[i]) [e.scrollLeft, e.scrollTop] = scrolled[i];
  });
}

makeSortable(document);
draw(document);
if ('live' in document.body.dataset) {
  fetch(location.pathname, {cache: 'force-cache'}) // the browser has it: nothing is sent again
    .then(answer => { version = answer.headers.get('ETag'); });
  setInterval(refresh, SECONDS * 1000);
}

// A printed page is narrower than the window.
const plots = () => Array.from(document.querySelectorAll('.plot.js-plotly-plot'));
addEventListener('beforeprint', () => plots().forEach(p => Plotly.relayout(p, {width: 660, autosize: false})));
addEventListener('afterprint', () => plots().forEach(p => Plotly.relayout(p, {width: null, autosize: true})));
