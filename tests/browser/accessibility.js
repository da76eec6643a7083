// What an accessibility checker would say first: names of controls, order of headings, ids, language, landmarks.
() => {
  const complaints = [];
  const shown = (element) => element.getClientRects().length > 0;
  const named = (element) =>
    (element.labels?.length ? [...element.labels].map((each) => each.textContent).join(' ') : '') ||
    element.getAttribute('aria-label') ||
    document.getElementById(element.getAttribute('aria-labelledby') ?? '')?.textContent ||
    (element.matches('button, a, [role=switch]') ? element.textContent : '');
  const controls = 'button, a[href], input, select, textarea, [role=textbox], [role=switch], [role=radio]';
  for (const element of document.querySelectorAll(controls))
    if (shown(element) && !(named(element) || '').trim()) complaints.push('no name: ' + element.outerHTML.slice(0, 200));
  const levels = [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].filter(shown).map((each) => +each.tagName[1]);
  if (levels.filter((each) => each === 1).length !== 1) complaints.push('not one h1: ' + levels);
  levels.forEach((level, index) => {
    if (level > (levels[index - 1] ?? 0) + 1) complaints.push('headings skip a level: ' + levels);
  });
  const ids = [...document.querySelectorAll('[id]')].map((each) => each.id);
  const twice = ids.filter((each, index) => ids.indexOf(each) !== index);
  if (twice.length) complaints.push('ids twice: ' + twice);
  if (!document.documentElement.lang) complaints.push('the page names no language');
  if (!document.querySelector('main')) complaints.push('there is no main landmark');
  for (const image of document.querySelectorAll('[role=img], img'))
    if (shown(image) && !image.getAttribute('aria-label') && !image.alt) complaints.push('no text: ' + image.outerHTML.slice(0, 120));
  for (const element of document.querySelectorAll('button, select, input:not(.sr-only), a.btn, .menu-item')) {
    const box = element.getBoundingClientRect();
    if (shown(element) && Math.min(box.width, box.height) < 20) complaints.push('too small to hit: ' + element.outerHTML.slice(0, 120));
  }
  return complaints;
}
