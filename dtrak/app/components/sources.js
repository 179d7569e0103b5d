// A picture joined to its sources by lines whose width is the score.
export default function ({ parentElement, data, setTriggerValue }) {
  const root = parentElement.querySelector('#sources') || parentElement;
  const area = document.createElement('div');
  area.className = 'sources';
  const links = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  links.setAttribute('class', 'links'); links.setAttribute('aria-hidden', 'true');
  const picture = document.createElement('img');
  picture.className = 'picture'; picture.src = data.src; picture.alt = data.alt;
  const list = document.createElement('div');
  list.className = 'list'; list.setAttribute('role', 'group'); list.setAttribute('aria-label', 'Strongest sources');
  for (const tile of data.tiles) {
    const button = document.createElement('button');
    button.type = 'button'; button.title = tile.caption; button.dataset.id = tile.id; button.dataset.share = tile.share;
    const image = document.createElement('img'); image.src = tile.src; image.alt = tile.alt;
    const words = document.createElement('div'); words.className = 'words';
    for (const [name, text] of [['score', tile.score], ['text', tile.caption], ['text', tile.creator]]) {
      const line = document.createElement('div'); line.className = name; line.textContent = text; words.append(line);
    }
    button.append(image, words);
    button.onclick = () => setTriggerValue('clicked', tile.id);
    list.append(button);
  }
  area.append(links, picture, list);
  root.replaceChildren(area);
  const draw = () => {
    const frame = area.getBoundingClientRect(), from = picture.getBoundingClientRect();
    const x0 = from.right - frame.left, y0 = from.top + from.height / 2 - frame.top;
    links.replaceChildren(...[...list.children].map((button) => {
      const to = button.getBoundingClientRect(), path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
      const x1 = to.left - frame.left, y1 = to.top + to.height / 2 - frame.top, middle = (x0 + x1) / 2;
      path.setAttribute('d', `M ${x0} ${y0} C ${middle} ${y0}, ${middle} ${y1}, ${x1} ${y1}`);
      path.style.strokeWidth = 1 + 9 * button.dataset.share;
      return path;
    }));
  };
  draw();
  const watcher = new ResizeObserver(draw);
  watcher.observe(area);
  return () => watcher.disconnect();
}
