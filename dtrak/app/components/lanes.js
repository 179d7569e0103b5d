// Rankings side by side, with a line between the places of the same training image in neighbouring lanes.
export default function ({ parentElement, data, setTriggerValue }) {
  const root = parentElement.querySelector('#lanes') || parentElement;
  const area = document.createElement('div');
  area.className = 'lanes';
  const links = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  links.setAttribute('class', 'links'); links.setAttribute('aria-hidden', 'true');
  area.append(links);
  const light = (id, on) => {
    for (const path of links.querySelectorAll('path')) if (path.dataset.id === id) path.classList.toggle('lit', on);
  };
  const columns = data.lanes.map((lane, number) => {
    const column = document.createElement('div');
    column.className = 'lane';
    column.setAttribute('role', 'group'); column.setAttribute('aria-label', lane.title);
    const title = document.createElement('div'); title.className = 'title'; title.textContent = lane.title;
    column.append(title);
    for (const tile of lane.tiles) {
      const button = document.createElement('button');
      button.type = 'button'; button.title = tile.caption;
      button.dataset.id = tile.id; button.dataset.lane = number;
      const image = document.createElement('img'); image.src = tile.src; image.alt = tile.alt;
      const words = document.createElement('div'); words.className = 'words';
      for (const [name, text] of [['score', tile.place + '.  ' + tile.score], ['text', tile.caption]]) {
        const line = document.createElement('div'); line.className = name; line.textContent = text; words.append(line);
      }
      button.append(image, words);
      button.onclick = () => setTriggerValue('clicked', tile.id);
      button.onmouseenter = button.onfocus = () => light(tile.id, true);
      button.onmouseleave = button.onblur = () => light(tile.id, false);
      column.append(button);
    }
    area.append(column);
    return column;
  });
  root.replaceChildren(area);
  const draw = () => {
    const frame = area.getBoundingClientRect();
    const paths = [];
    for (let i = 0; i + 1 < columns.length; i++) {
      for (const left of columns[i].querySelectorAll('button')) {
        const right = [...columns[i + 1].querySelectorAll('button')].find((b) => b.dataset.id === left.dataset.id);
        if (!right) continue;
        const a = left.getBoundingClientRect(), b = right.getBoundingClientRect();
        const x0 = a.right - frame.left, y0 = a.top + a.height / 2 - frame.top;
        const x1 = b.left - frame.left, y1 = b.top + b.height / 2 - frame.top, middle = (x0 + x1) / 2;
        const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
        path.setAttribute('d', `M ${x0} ${y0} C ${middle} ${y0}, ${middle} ${y1}, ${x1} ${y1}`);
        path.dataset.id = left.dataset.id;
        paths.push(path);
      }
    }
    links.replaceChildren(...paths);
  };
  draw();
  const watcher = new ResizeObserver(draw);
  watcher.observe(area);
  return () => watcher.disconnect();
}
