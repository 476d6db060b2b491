// A box that scrolls can be reached and has a name, so that the keyboard scrolls it.
const makeReachable = () => document.querySelectorAll('.wide').forEach(box => {
  const scrolls = box.scrollWidth > box.clientWidth;
  for (const [name, value] of [['tabindex', '0'], ['role', 'region'], ['aria-label', box.dataset.label]]) {
    if (scrolls) box.setAttribute(name, value); else box.removeAttribute(name);
  }
});
addEventListener('load', makeReachable);
addEventListener('resize', makeReachable);
addEventListener('toggle', makeReachable, true);
addEventListener('beforeprint', () => document.querySelectorAll('details.print').forEach(part => part.open = true));
