// Training images as tiles. When the ranking changes, tiles move from their old places to the new ones.
export default function ({ parentElement, data, setTriggerValue }) {
  const root = parentElement.querySelector('#gallery') || parentElement;
  const before = new Map(), focused = root.getRootNode().activeElement?.dataset?.id;
  for (const button of root.querySelectorAll('button')) before.set(button.dataset.id, button.getBoundingClientRect());
  const grid = document.createElement('div');
  grid.className = 'grid ' + data.side;
  grid.setAttribute('role', 'group');
  grid.setAttribute('aria-label', data.label);
  for (const tile of data.tiles) {
    const button = document.createElement('button');
    button.type = 'button';
    button.dataset.id = tile.id;
    button.dataset.score = tile.score;
    button.title = tile.caption;
    if (tile.faded) button.classList.add('faded');
    if (tile.id === data.chosen) { button.classList.add('chosen'); button.setAttribute('aria-current', 'true'); }
    const image = document.createElement('img');
    image.src = tile.src; image.alt = tile.alt;
    const bar = document.createElement('div'); bar.className = 'bar';
    const fill = document.createElement('i'); fill.style.width = (100 * tile.share) + '%'; bar.append(fill);
    button.append(image, bar);
    for (const [name, text] of [['score', tile.place + '.  ' + tile.score], ['text', tile.caption],
                                ['text', tile.creator], ['text', tile.licence]]) {
      const line = document.createElement('div'); line.className = name; line.textContent = text; button.append(line);
    }
    if (tile.badges && tile.badges.length) {
      const badges = document.createElement('div'); badges.className = 'badges';
      for (const [text, kind, help] of tile.badges) {
        const badge = document.createElement('span'); badge.className = kind; badge.textContent = text;
        badge.title = help; badges.append(badge);
      }
      button.append(badges);
    }
    button.onclick = () => setTriggerValue('clicked', tile.id);
    grid.append(button);
  }
  grid.onkeydown = (event) => {
    const all = [...grid.children], place = all.indexOf(event.target.closest('button'));
    const columns = all.filter((b) => b.offsetTop === all[0].offsetTop).length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (event.key === 'Escape') setTriggerValue('closed', true);
    else if (step && all[place + step]) { all[place + step].focus(); event.preventDefault(); }
  };
  root.replaceChildren(grid);
  if (focused) [...grid.children].find((b) => b.dataset.id === focused)?.focus({ preventScroll: true });
  if (!before.size || matchMedia('(prefers-reduced-motion: reduce)').matches) return;
  for (const button of grid.children) {
    const from = before.get(button.dataset.id), to = button.getBoundingClientRect();
    const start = from ? { transform: `translate(${from.left - to.left}px, ${from.top - to.top}px)` } : { opacity: 0 };
    button.animate([start, { transform: 'none', opacity: 1 }], { duration: 350, easing: 'ease-out' });
  }
}
