// Videos and curves of an episode under one cursor.

/** A source for a video element: the path of a file beside the page, or a video that the page holds. */
function videoSource(id) {
  if (page.videos[id]) return page.videos[id];
  const bytes = decodeBytes(document.getElementById(id).textContent);
  return URL.createObjectURL(new Blob([bytes], { type: 'video/mp4' }));
}

/**
 * Videos { label, id } of `count` frames at `rate` per second, and charts, each with `setCursor(step)`. Without a count
 * the first video says how many frames there are.
 */
class Player {
  constructor({ rate, count, videos, onStep = () => {} }) {
    this.rate = rate;
    this.count = count || 1;
    this.current = 0;
    this.charts = [];
    this.onStep = onStep;
    this.videos = videos.map(({ id }) => {
      const video = el('video', { src: videoSource(id), preload: 'auto', playsinline: '' });
      video.muted = true;
      video.addEventListener('loadeddata', () => this.showFrame(video));
      return video;
    });
    if (!count && this.videos.length) {
      this.videos[0].addEventListener('loadedmetadata', () => {
        this.count = Math.max(1, Math.round(this.videos[0].duration * this.rate));
        this.slider.max = this.count - 1;
        this.seek(this.current);
      });
    }
    this.slider = el('input', { type: 'range', min: 0, max: this.count - 1, value: 0, 'aria-label': 'step',
      input: () => this.seek(Number(this.slider.value)) });
    this.button = el('button', { type: 'button', class: 'play', click: () => this.toggle() }, 'play');
    this.readout = el('output', { class: 'step' });
    this.box = el('div', { class: 'player' },
      el('div', { class: 'videos' }, this.videos.map((video, i) => el('figure', {}, video, el('figcaption', {}, videos[i].label)))),
      el('div', { class: 'controls' }, this.button, this.slider, this.readout));
    this.seek(0);
  }

  /** Moves all videos and charts to a step. */
  seek(step) {
    this.pause();
    this.show(step);
    for (const video of this.videos) this.showFrame(video);
  }

  showFrame(video) {
    if (this.playing) return;
    // The middle of a frame: its begin may be rounded to the one before.
    video.currentTime = (this.current + 0.5) / this.rate;
  }

  show(step) {
    this.current = Math.max(0, Math.min(step, this.count - 1));
    this.slider.value = this.current;
    this.readout.textContent = `step ${this.current} of ${this.count - 1}, ${(this.current / this.rate).toFixed(2)} s`;
    for (const chart of this.charts) chart.setCursor(this.current);
    this.onStep(this.current);
  }

  toggle() {
    if (this.playing) this.seek(this.current);
    else this.play();
  }

  play() {
    if (this.current >= this.count - 1) this.seek(0);
    const begin = performance.now() - (1000 * this.current) / this.rate;
    this.playing = true;
    this.button.textContent = 'pause';
    for (const video of this.videos) video.play().catch(() => {});
    const advance = () => {
      if (!this.playing) return;
      const [first, ...others] = this.videos;
      const time = first ? first.currentTime : (performance.now() - begin) / 1000;
      for (const video of others) if (Math.abs(video.currentTime - time) > 1.5 / this.rate) video.currentTime = time;
      const step = Math.floor(time * this.rate);
      if (step !== this.current) this.show(step);
      if (step >= this.count - 1 || (first && first.ended)) this.seek(this.count - 1);
      else requestAnimationFrame(advance);
    };
    requestAnimationFrame(advance);
  }

  pause() {
    this.playing = false;
    this.button.textContent = 'play';
    for (const video of this.videos) video.pause();
  }

  destroy() {
    this.pause();
    for (const video of this.videos) {
      if (video.src.startsWith('blob:')) URL.revokeObjectURL(video.src);
      video.removeAttribute('src');
      video.load();
    }
    for (const chart of this.charts) chart.destroy();
  }
}
