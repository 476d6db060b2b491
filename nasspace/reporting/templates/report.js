// Links the views, the list of networks and their panels: one network is open, another one may be pointed at.
addEventListener('load', () => {
  const list = document.getElementById('networks');
  if (!list) return;
  const views = [...document.querySelectorAll('[id^=view].plotly-graph-div')];
  const choices = document.getElementById('choices');
  const figures = choices ? [...views, choices] : views;
  const options = [...list.children];
  const idOf = option => option.id.slice('option-'.length);
  const panelOf = id => document.getElementById(`network-${id}`);
  let opened = null, pointed = null, active = 0, waiting = false;

  // Rings and lines around the open network and the one pointed at, on top of a figure: drawing it again takes too long.
  const marksOf = view => {
    const found = view.querySelector('.marks');
    if (found) return found;
    const made = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
    made.setAttribute('class', 'marks');
    made.setAttribute('aria-hidden', 'true');
    view.querySelector('.svg-container').append(made);
    return made;
  };
  // All points of a figure with the numbers of their trials and their places in it.
  const pointsOf = view => view.data.flatMap(trace => {
    const {[(trace.xaxis || 'x').replace('x', 'xaxis')]: xaxis, [(trace.yaxis || 'y').replace('y', 'yaxis')]: yaxis} = view._fullLayout;
    return (trace.ids || []).map((id, i) =>
      ({id, x: xaxis._offset + xaxis.d2p(trace.x[i]), y: yaxis._offset + yaxis.d2p(trace.y[i])}));
  }).filter(place => place.id !== '');
  const drawMarks = view => {
    const marks = marksOf(view), points = pointsOf(view);
    marks.replaceChildren();
    for (const id of new Set([opened, pointed])) {
      if (id === null) continue;
      const places = points.filter(place => place.id === id);
      const mark = document.createElementNS('http://www.w3.org/2000/svg', view === choices ? 'polyline' : 'circle');
      if (!places.length) continue;
      mark.dataset.network = id;
      if (view === choices) {
        mark.setAttribute('points', places.map(place => `${place.x},${place.y}`).join(' '));
      } else {
        Object.entries({cx: places[0].x, cy: places[0].y, r: 10}).forEach(pair => mark.setAttribute(...pair));
      }
      marks.append(mark);
    }
  };
  const draw = () => { waiting = false; figures.forEach(drawMarks); };
  const mark = () => { if (!waiting) { waiting = true; requestAnimationFrame(draw); } };
  const point = id => {
    if (id === pointed) return;
    pointed = id;
    options.forEach(option => option.classList.toggle('pointed', idOf(option) === id));
    mark();
  };
  const activate = (i, scroll = true) => {
    active = i;
    list.setAttribute('aria-activedescendant', options[i].id);
    options.forEach((option, j) => option.classList.toggle('active', j === i));
    if (scroll) options[i].scrollIntoView({block: 'nearest'});
  };
  const open = (id, focus = true) => {
    const panel = panelOf(id), option = document.getElementById(`option-${id}`);
    if (!panel || !option) return;
    if (opened !== null) {
      panelOf(opened).hidden = true;
      document.getElementById(`option-${opened}`).setAttribute('aria-selected', 'false');
    }
    opened = id;
    panel.hidden = false;
    option.setAttribute('aria-selected', 'true');
    activate(options.indexOf(option), focus);
    makeReachable();
    mark();
    if (!focus) return;
    history.replaceState(null, '', `#network-${id}`);
    const title = panel.querySelector('h3');
    title.focus({preventScroll: true});
    title.scrollIntoView({block: 'nearest', behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth'});
  };

  for (const view of figures) {
    view.on('plotly_afterplot', () => drawMarks(view));
    const idsOf = event => event.points.map(place => place.id).filter(id => id !== undefined);
    view.on('plotly_hover', event => point(idsOf(event)[0] ?? null));
    view.on('plotly_unhover', () => point(null));
    // A tap opens the nearest network. The click that would follow it, when the page has scrolled, is prevented.
    let down = null, tapped = -Infinity;
    view.on('plotly_click', event => {
      const [id] = idsOf(event);
      if (id !== undefined && performance.now() - tapped > 1000) open(id);
    });
    view.addEventListener('pointerdown', event => { down = event.pointerType === 'mouse' ? null : event; });
    view.addEventListener('pointercancel', () => { down = null; });
    view.addEventListener('pointerup', event => {
      if (!down || Math.hypot(event.clientX - down.clientX, event.clientY - down.clientY) > 8) return;
      tapped = performance.now();
      const box = view.getBoundingClientRect();
      const far = place => Math.hypot(box.x + place.x - event.clientX, box.y + place.y - event.clientY);
      const [nearest] = pointsOf(view).filter(place => far(place) < 24).sort((one, other) => far(one) - far(other));
      if (nearest) open(nearest.id);
    });
    view.addEventListener('touchend', event => {
      if (performance.now() - tapped < 100 && event.cancelable) event.preventDefault();
    }, {passive: false});
  }
  list.addEventListener('mouseover', event => { const option = event.target.closest('li'); if (option) point(idOf(option)); });
  list.addEventListener('mouseleave', () => point(null));
  list.addEventListener('click', event => { const option = event.target.closest('li'); if (option) open(idOf(option)); });
  list.addEventListener('focus', () => { activate(active); point(idOf(options[active])); });
  list.addEventListener('blur', () => point(null));
  list.addEventListener('keydown', event => {
    const steps = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -options.length, End: options.length};
    if (event.key in steps) {
      activate(Math.min(options.length - 1, Math.max(0, active + steps[event.key])));
      point(idOf(options[active]));
    } else if (event.key === 'Enter' || event.key === ' ') {
      open(idOf(options[active]));
    } else {
      return;
    }
    event.preventDefault();
  });
  document.getElementById('network').addEventListener('keydown', event => { if (event.key === 'Escape') list.focus(); });
  document.querySelectorAll('[data-open]').forEach(button => {
    button.addEventListener('click', () => open(button.dataset.open));
    button.addEventListener('mouseenter', () => point(button.dataset.open));
    button.addEventListener('mouseleave', () => point(null));
    button.addEventListener('focus', () => point(button.dataset.open));
    button.addEventListener('blur', () => point(null));
  });

  const announcement = document.getElementById('announcement');
  const copied = button => {
    button.textContent = 'Copied';
    announcement.textContent = `Copied: ${button.dataset.copy}`;
    setTimeout(() => { button.textContent = 'Copy'; }, 2000);
  };
  const select = button => {  // where a page may not write to the clipboard
    const range = document.createRange();
    range.selectNodeContents(button.parentElement.querySelector('code'));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    if (document.execCommand('copy')) copied(button);
  };
  document.querySelectorAll('[data-copy]').forEach(button => button.addEventListener('click', () => {
    const written = navigator.clipboard ? navigator.clipboard.writeText(button.dataset.copy) : Promise.reject();
    written.then(() => copied(button), () => select(button));
  }));

  addEventListener('hashchange', () => open(location.hash.replace('#network-', '')));
  const linked = location.hash.replace('#network-', '');
  open(panelOf(linked) ? linked : document.getElementById('network').dataset.first, Boolean(panelOf(linked)));
});
